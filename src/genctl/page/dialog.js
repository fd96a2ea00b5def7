/** All that is known of one card, for reading and for copying into a report. */

/** @import {Card, RefusedImage} from './types.js' */
/** @import {Shot} from './words.js' */
import { hide, part, put, setText, showRefund, showStatus } from './card.js';
import { clock, gallery, headline, minute, missing, sentence, standing, titled } from './words.js';

/** @typedef {{label: string, text: string, title?: string}} Fact */
/** @typedef {{again: (card: Card) => void, retry: (card: Card) => void, cancel: (card: Card) => Promise<string | null>}} Wishes */

const OUTCOMES = new Map([
  ['refused', 'Refused: no image was made'],
  ['unknown', 'Unknown: an image may have been made'],
]);

/**
 * @param {Wishes} wishes
 * @param {string} price of one image, in words; empty where it has none
 */
export function detailsDialog(wishes, price) {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById('details'));
  const copy = part(dialog, '.reference .copy');
  const [close, cancel, retry] = [part(dialog, '.close'), part(dialog, '.cancel'), part(dialog, '.retry-it')];
  /** @type {Card | null} */
  let shown = null;
  let pictured = '';

  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close()); // the backdrop
  part(dialog, '.again').addEventListener('click', () => leave(wishes.again));
  retry.addEventListener('click', () => leave(wishes.retry));
  cancel.addEventListener('click', async () => {
    const card = shown;
    if (!card || cancel.ariaBusy) return;
    cancel.ariaBusy = 'true';
    const problem = await wishes.cancel(card);
    cancel.ariaBusy = null;
    if (shown?.key === card.key) setText(part(dialog, '.complaint'), problem ?? '');
  });
  copy.addEventListener('click', () => copied(copy, part(dialog, '.reference code')));
  setText(retry, price ? `Try again · ${price}` : 'Try again');

  /** @param {(card: Card) => void} wish */
  const leave = (wish) => {
    dialog.close();
    if (shown) wish(shown);
  };

  /** The images of a card that has not changed age all the same. @param {Card} card @param {number} now */
  const show = (card, now) => {
    const set = card.status === 'completed' ? gallery(card, now) : [];
    draw(set, card, now);
    if (card === shown) return;
    shown = card;
    const details = card.errorDetails ?? {};
    const failed = card.status === 'failed';
    Object.assign(dialog.dataset, { status: card.status, standing: standing(card) });
    showStatus(part(dialog, '.status'), card);
    setText(part(dialog, 'h2'), failed ? headline(card.errorDetails) : titled(card));
    put(part(dialog, '.sentence'), 'hidden', !failed);
    setText(part(dialog, '.sentence'), sentence(card.errorDetails));
    showRefund(dialog, card.errorDetails, now);
    put(part(dialog, '.short'), 'hidden', !missing(card));
    setText(part(dialog, '.short'), missing(card));
    facts(part(dialog, '.first'), first(card, set));
    facts(part(dialog, '.technical dl'), technical(card, now));
    put(part(dialog, '.body'), 'hidden', !details.providerBody);
    setText(part(dialog, '.body pre'), details.providerBody ?? '');
    put(part(dialog, '.reference'), 'hidden', !card.sessionId);
    setText(part(dialog, '.reference code'), reference(card));
    put(part(dialog, '.again'), 'hidden', !card.prompt);
    hide(retry, !failed || !card.prompt, close);
    hide(cancel, card.status !== 'queued', close);
  };

  /** @param {(Shot | RefusedImage)[]} set @param {Card} card @param {number} now */
  const draw = (set, card, now) => {
    const drawn = JSON.stringify([card.key, set]);
    if (drawn === pictured) return;
    pictured = drawn;
    const box = part(dialog, '.gallery');
    const focused = box.contains(document.activeElement);
    box.replaceChildren(...set.map((one, place) => ('url' in one ? frame(one, place, card, now) : gap(one))));
    if (focused) close.focus();
  };

  return {
    show,
    /** Time has passed. @param {number} now */
    age: (now) => void (dialog.open && shown && show(shown, now)),
    /** @param {Card} card @param {number} now */
    open: (card, now) => {
      for (const folded of dialog.querySelectorAll('details')) folded.open = false;
      part(dialog, '[role=log]').replaceChildren();
      setText(part(dialog, '.complaint'), '');
      shown = null; // its times may be of another day by now
      show(card, now);
      dialog.showModal();
      part(dialog, '.frame').scrollTop = 0;
    },
    close: () => dialog.close(),
    key: () => (dialog.open && shown ? shown.key : null),
  };
}

/** What a support needs, and nothing to choose from. @param {Card} card */
function reference({ sessionId, run, errorDetails }) {
  return [sessionId, run > 1 ? `run ${run}` : '', errorDetails?.code, errorDetails?.requestId].filter(Boolean).join(' · ');
}

/** @param {Card} card @param {(Shot | RefusedImage)[]} set @returns {Fact[]} */
function first(card, set) {
  const sizes = set.map((one) => ('url' in one ? (one.size ?? '') : ''));
  return [
    { label: 'Prompt', text: card.prompt ?? '' },
    { label: 'Model', text: card.model ?? '' },
    { label: 'Size', text: [...new Set(sizes)].filter(Boolean).join(', ') },
  ];
}

/**
 * What the card knows, in the order of reading; what is not known is left out.
 * @param {Card} card
 * @param {number} now milliseconds since 1970
 * @returns {Fact[]}
 */
function technical(card, now) {
  const details = card.errorDetails ?? {};
  const attempts = details.attempts ?? card.attempts;
  /** @param {string} label @param {unknown} value @returns {Fact} */
  const fact = (label, value) => ({ label, text: String(value ?? '') });
  /** @param {string} label @param {string | null | undefined} at @returns {Fact} */
  const time = (label, at) => ({ label, text: at ? clock(at, now) : '', title: at ?? '' });
  return [
    fact('Error code', details.code),
    fact('Category', details.category?.replaceAll('_', ' ')),
    fact('Provider’s status', details.providerStatus),
    fact('Provider’s words', details.providerMessage === details.userMessage ? '' : details.providerMessage),
    fact('Outcome', OUTCOMES.get(details.outcome ?? '')),
    fact('Attempts', attempts && details.maxAttempts ? `${attempts} of ${details.maxAttempts}` : attempts),
    fact('Run', card.run > 1 ? card.run : ''),
    fact('Parameters', card.params && Object.keys(card.params).length ? JSON.stringify(card.params) : ''),
    fact('Credits reserved', details.reservationAmount ?? card.credits?.reserved),
    time('Created', card.createdAt),
    time('Started', card.startedAt),
    time('First attempt', details.firstAttemptAt),
    time('Failed', details.failedAt),
    time('Completed', card.status === 'completed' ? card.completedAt : null),
    time('Credits returned', details.refundedAt),
    fact('Session', card.sessionId),
    fact('Client key', card.clientKey),
    fact('Provider’s request', details.requestId),
  ];
}

/** @param {HTMLElement} list @param {Fact[]} facts */
function facts(list, facts) {
  list.replaceChildren(
    ...facts
      .filter(({ text }) => text)
      .flatMap(({ label, text, title }) => {
        const term = document.createElement('dt');
        term.textContent = label;
        const value = document.createElement('dd');
        value.textContent = text;
        value.dir = 'auto';
        if (title) value.title = title;
        return [term, value];
      }),
  );
}

/** What stands for an image that a set lacks. @param {RefusedImage} image @returns {HTMLElement} */
function gap({ place, code, category, userMessage }) {
  const box = element('div', 'gap');
  const words = element('p', '', userMessage);
  words.dir = 'auto';
  box.append(element('p', '', `Image ${place}: ${headline({ category })}`), words, element('code', '', code));
  return box;
}

/** @param {Shot} shot @param {number} place @param {Card} card @param {number} now @returns {HTMLElement} */
function frame(shot, place, card, now) {
  const until = minute(shot.expiresAt ?? '', now);
  if (shot.expired) return element('p', '', `This image was kept until ${until}. It is gone by now.`);
  const box = element('figure', 'full');
  const link = /** @type {HTMLAnchorElement} */ (element('a', ''));
  Object.assign(link, { href: shot.url, target: '_blank', rel: 'noopener noreferrer', ariaLabel: `Open image ${place + 1}` });
  const image = /** @type {HTMLImageElement} */ (element('img', ''));
  Object.assign(image, { alt: card.prompt ?? '', referrerPolicy: 'no-referrer', src: shot.url });
  image.addEventListener('error', () => image.replaceWith(element('span', '', 'Open it: it cannot be shown here.')));
  const save = element('button', 'save', 'Download');
  save.ariaLabel = `Download image ${place + 1}`;
  save.addEventListener('click', () => saved(shot.url, `${card.sessionId ?? 'image'}-${place + 1}`, save));
  link.append(image);
  box.append(link, save, element('span', '', until ? `kept until ${until}` : ''));
  return box;
}

/**
 * Save an image of another origin, which a link alone cannot. Where its host forbids that a page reads it, a new tab
 * shows it, and there the browser saves it.
 * @param {string} url
 * @param {string} name
 * @param {HTMLElement} button
 */
async function saved(url, name, button) {
  try {
    const response = await fetch(url, { credentials: 'omit', referrerPolicy: 'no-referrer' });
    if (!response.ok) throw new Error(String(response.status));
    const image = await response.blob();
    const link = /** @type {HTMLAnchorElement} */ (element('a', ''));
    Object.assign(link, { href: URL.createObjectURL(image), download: `${name}.${image.type.split('/')[1] || 'jpeg'}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch {
    open(url, '_blank', 'noopener,noreferrer');
    button.textContent = 'Opened: save it there';
  }
}

/** @param {string} name @param {string} className @param {string} [text] */
function element(name, className, text = '') {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

/** @param {HTMLElement} button @param {HTMLElement} words */
async function copied(button, words) {
  try {
    await navigator.clipboard.writeText(words.textContent ?? '');
    button.textContent = 'Copied';
  } catch {
    getSelection()?.selectAllChildren(words); // without https there is no clipboard: Ctrl+C will do
    button.textContent = 'Selected';
  }
  setTimeout(() => (button.textContent = 'Copy'), 2_000);
}
