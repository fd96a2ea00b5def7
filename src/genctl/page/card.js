/** One card: built once from its template, then filled from its state. Text goes in as text only. */

/** @import {Card, Gate} from './types.js' */
import { ago, clock, count, headline, minute, pictures, refund, sentence, STANDING, standing, titled, waiting } from './words.js';

/** @typedef {{now: number, gate: Gate | null}} Moment what a card depends on beside itself */
/** @typedef {(what: 'open' | 'resend' | 'discard', card: Card) => void} Wish */
/** @typedef {{element: HTMLElement, button: HTMLElement, show: (card: Card, moment: Moment) => void}} CardView */

/**
 * @param {Wish} wish hears what the person wants
 * @returns {CardView}
 */
export function cardView(wish) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById('card'));
  const element = part(/** @type {DocumentFragment} */ (template.content.cloneNode(true)), '.card');
  const image = /** @type {HTMLImageElement} */ (part(element, '.picture'));
  const button = part(element, '.prompt');
  const [many, wait, failure, when] = ['.many', '.waiting', '.failure', '.when'].map((name) => part(element, name));
  const [status, run, model, unsent] = ['.status', '.run', '.model', '.unsent'].map((name) => part(element, name));
  if (!many || !wait || !failure || !when || !status || !run || !model || !unsent) throw new Error('a card lacks a part');
  /** @type {string | null} an address that gave no image */
  let broken = null;
  /** @type {Card | undefined} */
  let shown;
  /** @type {Moment} */
  let last;

  const wished = (/** @type {Parameters<Wish>[0]} */ what) => () => shown && wish(what, shown);
  button.addEventListener('click', wished('open'));
  part(element, '.resend').addEventListener('click', wished('resend'));
  part(element, '.discard').addEventListener('click', wished('discard'));
  image.addEventListener('error', () => {
    broken = image.src;
    if (shown) showStage(shown);
  });
  element.addEventListener('animationend', () => element.classList.remove('flipped'));

  /** @param {Card} card */
  const showStage = (card) => {
    const shots = card.status === 'completed' ? pictures(card, last.now) : [];
    const shot = shots.find(({ expired }) => !expired) ?? shots[0];
    const visible = !!shot && !shot.expired && shot.url !== broken;
    put(image, 'hidden', !visible);
    if (visible && image.src !== shot.url) image.src = shot.url;
    put(image, 'alt', card.prompt ?? '');
    const all = shots.length + (card.result?.refused ?? []).length;
    put(many, 'hidden', all < 2);
    setText(many, all < 2 ? '' : shots.length < all ? `${shots.length} of ${count(all, 'image')}` : count(all, 'image'));
    put(wait, 'hidden', card.status === 'failed' || visible);
    showIcon(wait, iconOf(card, last.gate));
    setText(part(wait, 'span'), card.status === 'completed' ? without(shot, last.now) : waiting(card, last.gate, last.now));
  };

  /** @type {CardView['show']} */
  const show = (card, moment) => {
    last = moment;
    if (shown !== card) {
      if (shown && shown.status !== card.status) element.classList.add('flipped');
      put(element.dataset, 'status', card.status);
      put(element.dataset, 'sessionId', card.sessionId ?? '');
      put(element.dataset, 'standing', standing(card));
      showStatus(status, card);
      setText(button, titled(card));
      setText(model, card.model ?? '');
      setText(run, card.run > 1 ? `, run ${card.run}` : '');
      hide(unsent, card.status !== 'unsent', button);
      put(failure, 'hidden', card.status !== 'failed');
      if (card.status === 'failed') {
        showIcon(part(failure, '.headline'), standing(card));
        setText(part(failure, '.headline span'), headline(card.errorDetails));
        setText(part(failure, '.sentence'), sentence(card.errorDetails));
        showRefund(failure, card.errorDetails, moment.now);
      }
      shown = card;
    }
    showTime(when, card.createdAt ?? card.seenAt, ago(card.createdAt ?? card.seenAt, moment.now));
    if (card.status !== 'failed') showStage(card);
    else if (!image.hidden || !wait.hidden) {
      [image.hidden, wait.hidden, many.hidden] = [true, true, true];
    }
  };
  return { element, button, show };
}

/**
 * Icon and word, so that colour alone says nothing.
 * @param {ParentNode} root
 * @param {Card} card
 */
export function showStatus(root, card) {
  showIcon(root, standing(card));
  setText(part(root, 'span'), STANDING[standing(card)]);
}

/**
 * @param {ParentNode} root
 * @param {Card['errorDetails']} details
 * @param {number} now
 */
export function showRefund(root, details, now) {
  const returned = refund(details);
  const line = part(root, '.refund');
  put(line, 'hidden', !returned);
  line.classList.toggle('pending', returned !== null && !returned.at);
  setText(part(line, 'span'), returned?.words ?? '');
  showTime(part(line, 'time'), returned?.at ?? '', returned?.at ? clock(returned.at, now) : '');
}

/**
 * @param {ParentNode} root
 * @param {string} selector
 * @returns {HTMLElement}
 */
export function part(root, selector) {
  const found = root.querySelector(selector);
  if (!found) throw new Error(`the page lacks ${selector}`);
  return /** @type {HTMLElement} */ (found);
}

/** @param {Node} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Writes only what is new: each write costs the browser a look at the whole page.
 * @template {object} T
 * @template {keyof T} K
 * @param {T} target
 * @param {K} name
 * @param {T[K]} value
 */
export function put(target, name, value) {
  if (target[name] !== value) target[name] = value;
}

/**
 * Hides what is not needed now. The focus that was in it goes to `next`: a browser would drop it to the body.
 * @param {HTMLElement} element
 * @param {boolean} hidden
 * @param {HTMLElement} next
 */
export function hide(element, hidden, next) {
  const focused = hidden && element.contains(document.activeElement);
  put(element, 'hidden', hidden);
  if (focused) next.focus({ preventScroll: true });
}

/** @param {ParentNode} root @param {string} name */
function showIcon(root, name) {
  const use = part(root, 'use');
  if (use.getAttribute('href') !== `#icon-${name}`) use.setAttribute('href', `#icon-${name}`);
}

/** @param {Card} card @param {Gate | null} gate */
function iconOf(card, gate) {
  if (card.status === 'completed') return 'image';
  return card.status === 'queued' && gate && gate.state !== 'open' ? 'paused' : card.status;
}

/**
 * What stands for an image that is not there.
 * @param {import('./words.js').Shot | undefined} shot
 * @param {number} now
 */
function without(shot, now) {
  if (!shot) return 'No image came.';
  if (!shot.expired) return 'The image cannot be shown here.';
  return `This image was kept until ${minute(shot.expiresAt ?? '', now)}. It is gone by now.`;
}

/** @param {HTMLElement} time @param {string} at @param {string} words */
function showTime(time, at, words) {
  setText(time, words);
  if (time.getAttribute('datetime') === at) return;
  time.setAttribute('datetime', at);
  time.title = at ? new Date(at).toLocaleString() : '';
}
