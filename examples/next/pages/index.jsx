/** The store in a page of Next: made in the browser alone, as it follows a stream. */

import dynamic from 'next/dynamic';

export default dynamic(() => import('../list.jsx'), { ssr: false });
