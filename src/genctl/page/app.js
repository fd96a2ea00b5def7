/** The page: the store's state onto the screen, and what a person does into the store. */

/** @import {Card, State} from './types.js' */
/** @import {Wish} from './card.js' */
import { hide, part, put, setText } from './card.js';
import { detailsDialog } from './dialog.js';
import { cardList } from './list.js';
import { tellNews, titled } from './news.js';
import { isActive } from './state.js';
import { createStore } from './store.js';
import { byEventSource, byFetch, follow } from './stream.js';
import { shared, whileVisible } from './tabs.js';
import { draft, tellSignIn, unsent } from './typed.js';
import { amount, asSentence, behind, closed, CONNECTION, count, minute, standing } from './words.js';

const { tool = '' } = document.documentElement.dataset;
const { price = '' } = document.body.dataset;
const PRICE = Number(price);
const PLACE_WITHIN_MS = 400;
const [TICK_MS, SLEPT_MS] = [3_000, 15_000];
const TITLE = document.title;
const BASE = `api/${tool}`;
const stream = follow(`${BASE}/events`, typeof EventSource === 'function' ? byEventSource : byFetch(fetch.bind(window)));
const canShare = typeof navigator.locks?.request === 'function' && typeof BroadcastChannel === 'function'; // not on plain http

const store = createStore({
  fetch: (path, init) => fetch(path, { credentials: 'same-origin', ...init }),
  events: canShare ? shared(stream, new URL(`${BASE}/events`, location.href).href) : whileVisible(stream),
  now: Date.now,
  base: BASE,
  newKey,
  keep: unsent,
  isVisible: () => !document.hidden,
  onOtherUser: () => location.reload(),
});

const form = /** @type {HTMLFormElement} */ (part(document, '#form'));
const prompt = /** @type {HTMLTextAreaElement} */ (part(form, '#prompt'));
const size = /** @type {HTMLSelectElement} */ (part(form, 'select'));
const older = part(document, '#older');
const dialog = detailsDialog(
  { again: ({ prompt }) => usePrompt(prompt ?? ''), retry: (card) => void retry(card), cancel: ({ key }) => store.cancel(key) },
  PRICE ? count(PRICE, 'credit') : '',
);

/** A key that nobody else has. randomUUID needs https, which a private network may not have. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// -- ordering -----------------------------------------------------------------------------------

/** @param {Event} event */
async function submit(event) {
  event.preventDefault();
  const text = prompt.value;
  if (!text.trim()) return complain('Say what the image shall show.');
  if (isShort()) await store.refreshCredits(); // perhaps there are more by now
  if (prompt.value !== text) return undefined; // Enter was pressed twice, and the first has ordered
  if (isShort()) return complain(short());
  complain('');
  prompt.value = '';
  keepDraft();
  unfilter();
  const { refusal, clientKey } = await store.order(text, size.value ? { size: size.value } : {});
  if (!refusal || prompt.value) return undefined;
  store.discard(clientKey); // its text is in the form again
  prompt.value = text;
  keepDraft();
  return complain(refusal);
}

/** @param {Card} card */
async function retry(card) {
  complain('');
  unfilter();
  const ordered = store.retry(card.key);
  list.view(store.getSnapshot().cards[0]?.key ?? '')?.button.focus(); // an order stands first, and the old card may be far below
  const { refusal } = await ordered;
  if (refusal) complain(refusal);
}

function isShort() {
  const { balance } = store.getSnapshot();
  return PRICE > 0 && balance !== null && balance < PRICE;
}

function short() {
  return asSentence(`an image costs ${count(PRICE, 'credit')} and you have ${amount(store.getSnapshot().balance ?? 0)}`);
}

/** @param {string} problem */
function complain(problem) {
  setText(part(form, '.complaint'), problem);
  prompt.setAttribute('aria-invalid', String(problem !== ''));
  if (problem) prompt.focus();
}

/** @param {string} text */
function usePrompt(text) {
  prompt.value = text;
  keepDraft();
  prompt.focus();
}

function keepDraft() {
  draft.write({ prompt: prompt.value, size: size.value }, store.getSnapshot().user);
}

let drafted = false;

/** What was typed before the page was loaded again, once it is known who is here. */
function restoreDraft() {
  drafted = true;
  const typed = draft.read(store.getSnapshot().user);
  if (prompt.value) return;
  prompt.value = typed.prompt;
  if ([...size.options].some(({ value }) => value === typed.size)) size.value = typed.size;
}

// -- the screen ---------------------------------------------------------------------------------

/** @type {Wish} */
const wish = (what, card) => {
  if (what !== 'open') complain('');
  if (what === 'open') dialog.open(card, now());
  else if (what === 'resend') void store.resend(card.clientKey ?? '');
  else {
    store.discard(card.clientKey ?? '');
    prompt.focus();
  }
};
const list = cardList(part(document, '#cards'), wish);
tellNews(store, list.view);

/** The server's time, which made all others. */
const now = () => Date.now() + store.getSnapshot().offset;

/** @type {State | null} */
let last = null;

function render() {
  const state = store.getSnapshot();
  const moment = { now: now(), gate: state.gate };
  if (state.cards !== last?.cards) renderCards(state, moment);
  if (state.gate !== last?.gate) list.refresh(moment);
  if (state.list === 'ready' && !drafted) restoreDraft();
  renderPage(state);
  renderTop(state);
  last = state;
}

/** @param {State} state @param {import('./card.js').Moment} moment */
function renderCards(state, moment) {
  list.show(placed(state.cards, moment.now), moment);
  const key = dialog.key();
  const opened = key && state.cards.find((card) => card.key === key);
  if (opened) dialog.show(opened, moment.now);
  else if (key) dialog.close();
  put(document, 'title', titled(state.cards, TITLE));
  renderFilter(state.cards);
}

/**
 * The cards whose place is known. One that an event alone has told of waits a moment for its row: at the top it
 * would move all others, only to be an old one that belongs far below.
 * @param {readonly Card[]} cards
 * @param {number} time
 */
function placed(cards, time) {
  /** @param {Card} card */
  const waits = (card) => !card.whole && card.sessionId !== null && !list.view(card.key) && time - Date.parse(card.seenAt) < PLACE_WITHIN_MS;
  if (!cards.some(waits)) return cards;
  setTimeout(() => renderCards(store.getSnapshot(), { now: now(), gate: store.getSnapshot().gate }), PLACE_WITHIN_MS);
  return cards.filter((card) => !waits(card));
}

/** @param {State} state */
function renderPage(state) {
  const { list: is, connection, gate, cards } = state;
  const signedIn = is !== 'signed-out';
  put(document.body.dataset, 'list', is);
  show('#form', signedIn);
  show('#signed-out', !signedIn);
  show('#loading', is === 'loading');
  show('#trouble', is === 'trouble');
  show('#empty', is === 'ready' && cards.length === 0);
  show('.over', cards.length > 0);
  show('#older', is === 'ready' && !!state.next);
  const lags = is === 'ready' && connection.told;
  show('#behind', lags);
  setText(part(document, '#behind p'), lags ? behind(connection, Date.now()) : '');
  const why = cards.some(isActive) ? closed(gate, now()) : '';
  show('#gate', why !== '');
  setText(part(document, '#gate span'), why);
  setText(part(document, '#trouble .problem'), state.problem);
}

/** @param {State} state */
function renderTop({ list: is, connection, user, balance, held }) {
  const signedIn = is !== 'signed-out';
  const line = part(document, '#stream');
  const word = is === 'trouble' ? 'offline' : connection.is;
  put(line, 'hidden', !signedIn);
  put(line.dataset, 'stream', word);
  setText(part(line, '.word'), CONNECTION[word]);
  const since = word === 'stale' || word === 'offline' ? connection.since : null;
  setText(part(line, '.since'), since === null ? '' : `since ${minute(since, now())}`);
  show('#user', user !== null);
  setText(part(document, '#user .who'), user === null ? '' : `Signed in as ${user}`);
  show('#sign-out', signedIn && is !== 'loading');
  show('#balance', balance !== null);
  setText(part(document, '#balance strong'), count(balance ?? 0, 'credit'));
  setText(part(document, '#balance .held'), held ? `${amount(held)} held` : '');
  setText(part(form, '#cost'), isShort() ? short() : PRICE ? `${count(PRICE, 'credit')} an image` : '');
  form.classList.toggle('is-short', isShort());
  part(form, '[type=submit]').setAttribute('aria-disabled', String(isShort()));
}

/** @param {readonly Card[]} cards */
function renderFilter(cards) {
  const of = { waiting: 0, completed: 0, failed: 0, cancelled: 0 };
  for (const is of cards.map(standing)) of[is === 'completed' || is === 'failed' || is === 'cancelled' ? is : 'waiting'] += 1;
  const kinds = Object.values(of).filter(Boolean).length;
  const chosen = /** @type {keyof of | ''} */ (part(document, '#cards').dataset.filter ?? '');
  show('#filter', kinds > 1 || chosen !== '');
  show('#none', chosen !== '' && of[chosen] === 0);
  show('#filter [value=cancelled]', of.cancelled > 0 || chosen === 'cancelled');
  for (const button of part(document, '#filter').querySelectorAll('button')) {
    const number = button.value ? of[/** @type {keyof of} */ (button.value)] : cards.length;
    setText(button, `${button.dataset.word ?? (button.dataset.word = button.textContent ?? '')} ${amount(number)}`);
  }
}

/** @param {HTMLButtonElement} chosen */
function filterBy(chosen) {
  for (const button of part(document, '#filter').querySelectorAll('button')) {
    button.setAttribute('aria-pressed', String(button === chosen));
  }
  part(document, '#cards').dataset.filter = chosen.value;
  renderFilter(store.getSnapshot().cards);
}

/** No filter hides what a person has just ordered. */
function unfilter() {
  const { filter } = part(document, '#cards').dataset;
  if (filter && filter !== 'waiting') filterBy(/** @type {HTMLButtonElement} */ (part(document, '#filter [value=""]')));
}

/** @type {Promise<void> | null} one page at a time, however it was asked for */
let loadingOlder = null;

function loadOlder() {
  loadingOlder ??= (async () => {
    const focused = document.activeElement === older;
    const before = new Set(store.getSnapshot().cards.map(({ key }) => key));
    older.setAttribute('aria-busy', 'true');
    const problem = await store.older();
    older.removeAttribute('aria-busy');
    setText(older, problem === null ? 'Show older images' : 'Older images could not be loaded. Try again');
    const first = store.getSnapshot().cards.find(({ key }) => !before.has(key));
    if (focused && older.hidden && first && document.activeElement === part(document, '#cards')) list.view(first.key)?.button.focus({ preventScroll: true });
  })().finally(() => (loadingOlder = null));
}

async function leave() {
  const button = /** @type {HTMLButtonElement} */ (part(document, '#sign-out'));
  button.disabled = true;
  const problem = await store.signOut();
  button.disabled = false;
  if (problem !== null) return complain(`You are still signed in. ${problem}`);
  draft.write({ prompt: '', size: '' }, null);
  return tellSignIn();
}

/** @param {string} selector @param {boolean} visible */
function show(selector, visible) {
  hide(part(document, selector), !visible, part(document, '#cards'));
}

// -- what happens ---------------------------------------------------------------------------------

form.addEventListener('submit', submit);
form.addEventListener('input', () => {
  complain('');
  keepDraft();
});
prompt.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
part(document, '#sign-out').addEventListener('click', leave);
part(document, '#filter').addEventListener('click', ({ target }) => target instanceof HTMLButtonElement && filterBy(target));
older.addEventListener('click', loadOlder);
for (const button of document.querySelectorAll('.retry')) button.addEventListener('click', store.wake);
document.addEventListener('visibilitychange', () => document.hidden || store.wake()); // perhaps signed in elsewhere
for (const name of ['online', 'focus']) addEventListener(name, store.wake);
document.addEventListener('resume', store.wake); // the browser had frozen this tab
let tickedAt = Date.now();
setInterval(() => {
  if (!document.hidden && Date.now() - tickedAt > SLEPT_MS) store.wake(); // the machine slept, and no event says so
  tickedAt = Date.now();
}, TICK_MS);
addEventListener('storage', ({ key }) => key === 'signed-in' && location.reload()); // as somebody else, perhaps
// A page that the browser keeps for its back button must hold neither stream nor lock.
addEventListener('pagehide', store.stop);
addEventListener('pageshow', ({ persisted }) => persisted && store.start());

/** Wheel and finger load more by themselves; who uses the keyboard has the button. */
let scrolledAt = -Infinity;
for (const name of ['wheel', 'touchmove']) addEventListener(name, () => (scrolledAt = Date.now()), { passive: true });
addEventListener(
  'scroll',
  () => {
    if (older.hidden || Date.now() - scrolledAt > 1_000 || older.getBoundingClientRect().top > 2 * innerHeight) return;
    loadOlder();
  },
  { passive: true },
);
setInterval(() => {
  list.refresh({ now: now(), gate: store.getSnapshot().gate }); // "2 min ago"
  dialog.age(now());
}, 30_000);

store.subscribe(render);
render();
store.start();
