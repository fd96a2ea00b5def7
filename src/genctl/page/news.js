/** What has just happened, for those who cannot see it: by ear, out of sight, in another tab. */

/** @import {Card, Store} from './types.js' */
/** @import {CardView} from './card.js' */
import { part, setText } from './card.js';
import { count, summary } from './words.js';

const QUIET_MS = 400; // one announcement for all that comes so close together
const LATEST_MS = 2_500; // also when the prompt is not known by then

/**
 * @param {Store} store
 * @param {(key: string) => CardView | undefined} viewOf
 */
export function tellNews(store, viewOf) {
  /** @type {Set<string>} keys of the cards that have flipped and were not told */
  const untold = new Set();
  /** @type {Set<string>} and those that nobody can have seen */
  const unseen = new Set();
  let began = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const pill = part(document, '#elsewhere');

  store.onFlips((cards) => {
    if (!untold.size) began = Date.now();
    for (const { key } of cards) untold.add(key);
    clearTimeout(timer);
    timer = setTimeout(tell, QUIET_MS);
  });
  pill.addEventListener('click', jump);
  addEventListener('scroll', () => unseen.size && showPill(), { passive: true });

  function tell() {
    const cards = store.getSnapshot().cards.filter(({ key }) => untold.has(key));
    if (cards.some(({ prompt }) => prompt === null) && Date.now() - began < LATEST_MS) {
      timer = setTimeout(tell, QUIET_MS);
      return;
    }
    untold.clear();
    if (!cards.length) return;
    announce(summary(cards));
    for (const { key } of cards) unseen.add(key);
    showPill();
  }

  function showPill() {
    for (const key of unseen) if (isInSight(viewOf(key)?.element)) unseen.delete(key);
    pill.hidden = unseen.size === 0;
    if (!unseen.size) return;
    const first = firstUnseen()?.element.getBoundingClientRect();
    pill.dataset.where = first && first.top < 0 ? 'above' : 'below';
    setText(part(pill, 'span'), `${count(unseen.size, 'image')} changed out of sight`);
  }

  function jump() {
    const view = firstUnseen();
    view?.element.scrollIntoView({ block: 'center' });
    view?.button.focus({ preventScroll: true });
    showPill();
  }

  function firstUnseen() {
    const card = store.getSnapshot().cards.find(({ key }) => unseen.has(key));
    return card && viewOf(card.key);
  }
}

/** @param {Element | undefined} element @returns {boolean} or there is nothing that could be seen */
function isInSight(element) {
  if (!element?.isConnected) return true;
  const { top, bottom, height } = element.getBoundingClientRect();
  if (!height) return true; // the filter hides it
  return !document.hidden && bottom > height / 3 && top < innerHeight - height / 3;
}

/** Where a dialog is open, nothing outside of it is heard. @param {string} text */
function announce(text) {
  const dialog = /** @type {HTMLDialogElement} */ (part(document, '#details'));
  const news = dialog.open ? part(dialog, '[role=log]') : part(document, '#news');
  const line = document.createElement('p');
  line.textContent = text;
  news.append(line);
  while (news.children.length > 5) news.firstChild?.remove();
}

/**
 * The tab's title: how many images wait.
 * @param {readonly Card[]} cards
 * @param {string} title
 */
export function titled(cards, title) {
  const waiting = cards.filter(({ status }) => status === 'queued' || status === 'processing' || status === 'sending').length;
  return waiting ? `(${waiting}) ${title}` : title;
}
