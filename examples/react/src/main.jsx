import { useCallback, useState } from 'react';
import { createRoot } from 'react-dom/client';

import { CONNECTION } from '../../../src/genctl/page/words.js';
import { Card, Details } from './Card.jsx';
import { store, useGenctl } from './useGenctl.js';

function App() {
  const { cards, connection } = useGenctl();
  const [opened, setOpened] = useState(null);
  const open = useCallback(setOpened, []);
  const card = cards.find(({ key }) => key === opened);

  const order = (event) => {
    event.preventDefault();
    void store.order(new FormData(event.target).get('prompt'));
    event.target.reset();
  };

  return (
    <>
      <p role="status">{CONNECTION[connection.is]}</p>
      <form onSubmit={order}>
        <input name="prompt" aria-label="Prompt" required />
        <button type="submit">Generate</button>
      </form>
      <ul>
        {cards.map((one) => (
          <Card key={one.key} card={one} open={open} />
        ))}
      </ul>
      {card && <Details card={card} store={store} close={() => setOpened(null)} />}
    </>
  );
}

store.start();
createRoot(document.getElementById('root')).render(<App />);
