/** A card and its dialog. `memo` works: a card that has not changed is the same object. */

import { memo, useEffect, useRef } from 'react';

import { headline, pictures, refund, sentence, STANDING, standing, waiting } from '../../../src/genctl/page/words.js';

export const Card = memo(function Card({ card, open }) {
  const [picture] = pictures(card, Date.now());
  return (
    <li data-session-id={card.sessionId ?? ''} data-status={card.status}>
      <p>{STANDING[standing(card)]}</p>
      {card.status === 'failed' && <Failure details={card.errorDetails} />}
      {card.status === 'completed' && picture && <img src={picture.url} alt={card.prompt ?? ''} />}
      {!['failed', 'completed'].includes(card.status) && <p>{waiting(card, null, Date.now())}</p>}
      <button type="button" dir="auto" onClick={() => open(card.key)}>
        {card.prompt || 'An image'}
      </button>
    </li>
  );
});

function Failure({ details }) {
  return (
    <>
      <h3>{headline(details)}</h3>
      <p dir="auto">{sentence(details)}</p>
      {refund(details) && <p>{refund(details).words}</p>}
    </>
  );
}

export function Details({ card, store, close }) {
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  return (
    <dialog ref={dialog} onClose={close}>
      <h2>{card.status === 'failed' ? headline(card.errorDetails) : card.prompt}</h2>
      <p dir="auto">{card.prompt}</p>
      {card.status === 'failed' && <Failure details={card.errorDetails} />}
      <p>
        Support reference: <code>{[card.sessionId, card.errorDetails?.code].filter(Boolean).join(' · ')}</code>
      </p>
      {card.status === 'failed' && (
        <button type="button" onClick={() => store.retry(card.key).then(() => dialog.current.close())}>
          Try again
        </button>
      )}
      <button type="button" onClick={() => dialog.current.close()}>
        Close
      </button>
    </dialog>
  );
}
