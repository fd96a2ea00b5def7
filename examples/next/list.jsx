import { useEffect, useSyncExternalStore } from 'react';

import { createStore } from '../../src/genctl/page/store.js';
import { byEventSource, follow } from '../../src/genctl/page/stream.js';
import { CONNECTION, sentence, STANDING, standing } from '../../src/genctl/page/words.js';

const base = '/api/seedream4';
const store = createStore({
  fetch: (path, init) => fetch(path, init),
  events: follow(`${base}/events`, byEventSource),
  base,
  root: '/',
});

export default function List() {
  const { cards, connection } = useSyncExternalStore(store.subscribe, store.getSnapshot);
  useEffect(() => {
    store.start();
    return store.stop;
  }, []);
  return (
    <main>
      <p role="status">{CONNECTION[connection.is]}</p>
      <button type="button" onClick={() => void store.order('a crowd, explicit nudity')}>
        Order what is refused
      </button>
      <ul>
        {cards.map((card) => (
          <li key={card.key} data-session-id={card.sessionId} data-status={card.status}>
            {STANDING[standing(card)]}: {card.prompt} {card.status === 'failed' && sentence(card.errorDetails)}
          </li>
        ))}
      </ul>
    </main>
  );
}
