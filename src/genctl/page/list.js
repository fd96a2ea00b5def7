/** The cards on the screen, by their keys: what has not changed is not touched, what has not moved stays. */

/** @import {Card} from './types.js' */
/** @import {CardView, Moment, Wish} from './card.js' */
import { cardView } from './card.js';

const SHORT = 60; // cards up to which a browser may draw all, whether they are seen or not

/**
 * @param {HTMLElement} list
 * @param {Wish} wish
 */
export function cardList(list, wish) {
  /** @type {Map<string, {view: CardView, card: Card}>} */
  const shown = new Map();
  /** @type {readonly Card[]} */
  let last = [];

  /** @param {readonly Card[]} cards @param {Moment} moment */
  function show(cards, moment) {
    if (cards === last) return;
    const placed = last.length === cards.length && cards.every((card, place) => card.key === last[place]?.key);
    /** @type {Set<Element>} what has another place than before; all others keep theirs */
    const moved = new Set();
    for (const card of cards) {
      const known = shown.get(card.key);
      if (known?.card === card) continue;
      const view = known?.view ?? cardView(wish);
      if (known && known.card.born !== card.born) moved.add(view.element);
      view.show(card, moment);
      shown.set(card.key, { view, card });
    }
    last = cards;
    if (placed) return;
    list.classList.toggle('is-long', cards.length > SHORT);
    place(cards, moved);
  }

  /** @param {readonly Card[]} cards @param {Set<Element>} moved */
  function place(cards, moved) {
    const keys = new Set(cards.map(({ key }) => key));
    for (const [key, { view }] of shown) {
      if (keys.has(key)) continue;
      view.element.remove();
      shown.delete(key);
    }
    const focused = document.activeElement;
    const hold = held(list, focused);
    let next = list.firstElementChild;
    for (const { key } of cards) {
      const element = shown.get(key)?.view.element;
      if (!element) continue;
      while (next && next !== element && moved.has(next)) next = next.nextElementSibling;
      if (next === element) next = next.nextElementSibling;
      else list.insertBefore(element, next);
    }
    if (focused instanceof HTMLElement && focused !== document.activeElement && list.contains(focused)) {
      focused.focus({ preventScroll: true }); // a browser forgets it when an element moves
    }
    hold();
  }

  /** Time has passed, or what all of them depend on has changed. @param {Moment} moment */
  function refresh(moment) {
    for (const { view, card } of shown.values()) view.show(card, moment);
  }

  return {
    show,
    refresh,
    /** @param {string} key */
    view: (key) => shown.get(key)?.view,
  };
}

/**
 * Returns what scrolls the card that a person looks at back to where it is now. A browser does that too, but it
 * chooses another card each time, and in a grid each of them goes another way.
 * @param {HTMLElement} list
 * @param {Element | null} focused
 */
function held(list, focused) {
  const { left, top } = list.getBoundingClientRect();
  if (top >= 0) return () => {};
  const at = document.elementFromPoint(left + 20, 20)?.closest('.card');
  const own = list.contains(focused) ? focused?.closest('.card') : null;
  const anchor = own && isOnScreen(own) ? own : at;
  const before = anchor?.getBoundingClientRect().top ?? 0;
  list.classList.add('is-placing');
  return () => {
    if (anchor?.isConnected) scrollBy({ top: anchor.getBoundingClientRect().top - before, behavior: 'instant' });
    requestAnimationFrame(() => list.classList.remove('is-placing'));
  };
}

/** @param {Element} element */
function isOnScreen(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}
