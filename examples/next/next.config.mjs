/** The API's paths go on to genctl, so that its cookie is one of this origin. */

import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

const api = process.env.GENCTL_API ?? 'http://127.0.0.1:8787';
const root = dirname(dirname(dirname(fileURLToPath(import.meta.url)))); // the store is outside of this folder

export default {
  turbopack: { root },
  outputFileTracingRoot: root,
  rewrites: async () =>
    ['/api/seedream4/:path*', '/whoami', '/signout', '/signin', '/page/:path*'].map((source) => ({
      source,
      destination: `${api}${source}`,
    })),
};
