/** All that is known of one card, for reading and for copying into a report. */

/** @import {Card} from './state.js' */
import { part, setText, showRefund, showStatus } from './card.js';
import { clock, headline, picture, sentence } from './words.js';

/** @typedef {{label: string, text: string, copy?: boolean, title?: string}} Fact */

const OUTCOMES = new Map([
  ['refused', 'Refused: no image was made'],
  ['unknown', 'Unknown: an image may have been made'],
]);

/**
 * @param {(prompt: string) => void} again called when the prompt is to be used again
 * @returns {{show: (card: Card, now: number) => void, open: (card: Card, now: number) => void, key: () => string | null}}
 */
export function detailsDialog(again) {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById('details'));
  const full = /** @type {HTMLAnchorElement} */ (part(dialog, '.full'));
  const thumbnail = /** @type {HTMLImageElement} */ (part(full, 'img'));
  /** @type {Card | null} */
  let shown = null;

  part(dialog, '.close').addEventListener('click', () => dialog.close());
  part(dialog, '.again').addEventListener('click', () => {
    dialog.close();
    again(shown?.prompt ?? '');
  });
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close()); // the backdrop
  thumbnail.addEventListener('load', () => (thumbnail.hidden = false));
  thumbnail.addEventListener('error', () => (thumbnail.hidden = true));

  /** @param {Card} card @param {number} now */
  const show = (card, now) => {
    if (card === shown) return;
    shown = card;
    const failed = card.status === 'failed';
    dialog.dataset.status = card.status;
    showStatus(dialog, card);
    setText(part(dialog, 'h2'), failed ? headline(card.errorDetails) : (card.prompt ?? 'An image'));
    part(dialog, '.sentence').hidden = !failed;
    setText(part(dialog, '.sentence'), sentence(card.errorDetails));
    showRefund(dialog, card.errorDetails, now);
    const shot = picture(card, now);
    full.hidden = !shot || shot.expired;
    if (shot && !shot.expired && full.href !== shot.url) {
      full.href = shot.url;
      thumbnail.hidden = true;
      thumbnail.src = shot.url;
      thumbnail.alt = card.prompt ?? '';
    }
    part(dialog, '.again').hidden = !card.prompt;
    part(dialog, 'dl').replaceChildren(...facts(card, now).flatMap(rows));
  };

  return {
    show,
    open: (card, now) => {
      show(card, now);
      dialog.showModal();
    },
    key: () => (dialog.open && shown ? shown.key : null),
  };
}

/**
 * What the card knows, in the order of reading; what is not known is left out.
 * @param {Card} card
 * @param {number} now milliseconds since 1970
 * @returns {Fact[]}
 */
function facts(card, now) {
  const details = card.errorDetails ?? {};
  const attempts = details.attempts ?? card.attempts;
  const shot = picture(card, now);
  /** @param {string} label @param {unknown} value @param {boolean} [copy] @returns {Fact} */
  const fact = (label, value, copy) => ({ label, text: String(value ?? ''), copy });
  /** @param {string} label @param {string | null | undefined} at @returns {Fact} */
  const time = (label, at) => ({ label, text: at ? clock(at, now) : '', title: at ?? '' });
  return [
    fact('Prompt', card.prompt),
    fact('Model', card.model),
    fact('Size', shot?.size),
    fact('Error code', details.code, true),
    fact('Category', details.category?.replaceAll('_', ' ')),
    fact('Provider’s status', details.providerStatus),
    fact('Provider’s words', details.providerMessage === details.userMessage ? '' : details.providerMessage),
    fact('Outcome', OUTCOMES.get(details.outcome ?? '')),
    fact('Attempts', attempts && details.maxAttempts ? `${attempts} of ${details.maxAttempts}` : attempts),
    fact('Run', card.run > 1 ? card.run : ''),
    fact('Credits reserved', details.reservationAmount ?? card.credits?.reserved),
    time('Created', card.createdAt),
    time('Started', card.startedAt),
    time('First attempt', details.firstAttemptAt),
    time('Failed', details.failedAt),
    time('Completed', card.status === 'completed' ? card.completedAt : null),
    time('Credits returned', details.refundedAt),
    time('Image kept until', card.result?.images?.[0]?.expiresAt),
    fact('Session', card.sessionId, true),
    fact('Client key', card.clientKey, true),
    fact('Provider’s request', details.requestId, true),
  ].filter(({ text }) => text);
}

/** @param {Fact} fact @returns {HTMLElement[]} */
function rows({ label, text, copy, title }) {
  const term = document.createElement('dt');
  term.textContent = label;
  const value = document.createElement('dd');
  const words = document.createElement(copy ? 'code' : 'span');
  words.textContent = text;
  if (title) words.title = title;
  value.append(words);
  if (copy) value.append(copyButton(label, text, words));
  return [term, value];
}

/** @param {string} label @param {string} text @param {HTMLElement} words */
function copyButton(label, text, words) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'copy';
  button.textContent = 'Copy';
  button.setAttribute('aria-label', `Copy: ${label}`);
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = 'Copied';
    } catch {
      getSelection()?.selectAllChildren(words); // without https there is no clipboard: Ctrl+C will do
      button.textContent = 'Selected';
    }
  });
  return button;
}
