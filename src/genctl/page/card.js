/** One card: built once from its template, then filled from its state. Text goes in as text only. */

/** @import {Card, ErrorDetails} from './state.js' */
import { ago, clock, headline, picture, refund, sentence, STATUS } from './words.js';

/** @typedef {{element: HTMLElement, show: (card: Card, now: number) => void}} CardView */

/**
 * @param {(key: string) => void} open called with the card's key when its details are wanted
 * @returns {CardView}
 */
export function cardView(open) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById('card'));
  const element = part(/** @type {DocumentFragment} */ (template.content.cloneNode(true)), '.card');
  const image = /** @type {HTMLImageElement} */ (part(element, '.picture'));
  const button = part(element, '.prompt');
  /** @type {string | null} an address that gave no image */
  let broken = null;
  /** @type {Card} */
  let shown;

  button.addEventListener('click', () => open(shown.key));
  image.addEventListener('error', () => {
    broken = image.src;
    show(shown, Date.now());
  });
  element.addEventListener('animationend', () => element.classList.remove('flipped'));

  /** @type {CardView['show']} */
  const show = (card, now) => {
    if (shown && shown.status !== card.status) element.classList.add('flipped');
    shown = card;
    element.dataset.status = card.status;
    element.dataset.sessionId = card.sessionId ?? '';
    showStatus(element, card);
    showTime(part(element, '.when'), card.createdAt ?? card.seenAt, ago(card.createdAt ?? card.seenAt, now));
    setText(button, card.prompt ?? 'An image');
    setText(part(element, '.model'), card.model ?? '');
    setText(part(element, '.run'), card.run > 1 ? `, run ${card.run}` : '');
    const shot = picture(card, now);
    const visible = shot && !shot.expired && shot.url !== broken;
    image.hidden = !visible;
    if (visible && image.src !== shot.url) image.src = shot.url;
    image.alt = card.prompt ?? '';
    showStage(element, card, shot ? (visible ? '' : 'The image cannot be shown here.') : 'No image came.');
    showFailure(element, card, now);
  };
  return { element, show };
}

/**
 * Icon and word, so that colour alone says nothing.
 * @param {ParentNode} root
 * @param {Card} card
 */
export function showStatus(root, card) {
  part(root, '.status use').setAttribute('href', `#icon-${card.status}`);
  setText(part(root, '.status span'), STATUS[card.status]);
}

/**
 * @param {ParentNode} root
 * @param {ErrorDetails | null} details
 * @param {number} now
 */
export function showRefund(root, details, now) {
  const returned = refund(details);
  const line = part(root, '.refund');
  line.hidden = !returned;
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

/** @param {HTMLElement} root @param {Card} card @param {string} without what stands for a missing image */
function showStage(root, card, without) {
  const line = part(root, '.waiting');
  line.hidden = card.status === 'failed' || (card.status === 'completed' && !without);
  part(line, 'use').setAttribute('href', card.status === 'completed' ? '#icon-image' : `#icon-${card.status}`);
  setText(part(line, 'span'), card.status === 'completed' ? without : waitingFor(card));
}

/** @param {Card} card */
function waitingFor(card) {
  if (card.status === 'sending') return 'Sending the request';
  return card.status === 'queued' ? 'Waiting for its turn' : 'The image is being made';
}

/** @param {HTMLElement} root @param {Card} card @param {number} now */
function showFailure(root, card, now) {
  const failure = part(root, '.failure');
  failure.hidden = card.status !== 'failed';
  setText(part(failure, '.headline'), headline(card.errorDetails));
  setText(part(failure, '.sentence'), sentence(card.errorDetails));
  showRefund(failure, card.errorDetails, now);
}

/** @param {HTMLElement} time @param {string} at @param {string} words */
function showTime(time, at, words) {
  time.setAttribute('datetime', at);
  time.title = at ? new Date(at).toLocaleString() : '';
  setText(time, words);
}
