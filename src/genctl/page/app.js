/** The page: news goes into the state, the state onto the screen. */

/** @import {Action, Card, EventName, News, State} from './state.js' */
/** @import {CardView} from './card.js' */
import { ApiError, credits, EVENTS, freshSession, generate, newKey, sessions, signOut, user } from './api.js';
import { cardView, part, setText } from './card.js';
import { detailsDialog } from './dialog.js';
import { EMPTY, flips, isFresh, reduce } from './state.js';
import { follow } from './stream.js';
import { announcement, asSentence, count } from './words.js';

const PAGE_SIZE = 48;
const LONGEST_DELAY_MS = 15_000;
const WORDS_OF_STREAM = { connecting: 'Connecting', live: 'Live', lost: 'Offline' };

let state = EMPTY;
/** @type {Map<string, CardView>} */
const views = new Map();
const dialog = detailsDialog(usePrompt);
const form = /** @type {HTMLFormElement} */ (part(document, '#form'));
const prompt = /** @type {HTMLTextAreaElement} */ (part(form, '#prompt'));
const size = /** @type {HTMLSelectElement} */ (part(form, 'select'));

/** @param {Action} action */
function dispatch(action) {
  const before = state;
  state = reduce(before, action);
  for (const card of flips(before, state, action)) announce(card);
  render();
}

const now = () => new Date().toISOString();

// -- news ---------------------------------------------------------------------------------------

/** @type {(() => void) | null} */
let unfollow = null;
let loading = false;
let failures = 0;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let reload;

/** The newest sessions, again until they came; then the stream from where they stand. */
async function load() {
  clearTimeout(reload);
  if (loading) return;
  loading = true;
  const { epoch } = state;
  try {
    const page = await sessions({ limit: PAGE_SIZE });
    failures = 0;
    dispatch({ type: 'loaded', items: page.sessions, next: page.next ?? null, older: false, epoch, at: now() });
    if (!unfollow) refreshUser();
    unfollow ??= follow(EVENTS, page.lastEventId ?? '', { hear, turn, refused: load });
    refreshCredits();
  } catch (error) {
    const problem = trouble(error);
    if (problem !== null) {
      if (state.list !== 'ready') dispatch({ type: 'list', list: 'trouble', problem });
      reload = setTimeout(load, Math.min(1_000 * 2 ** failures++, LONGEST_DELAY_MS));
    }
  } finally {
    loading = false;
  }
  if (state.list !== 'signed-out' && epoch < state.epoch) load(); // a reset came meanwhile
}

async function loadOlder() {
  const { epoch, next } = state;
  const older = /** @type {HTMLButtonElement} */ (part(document, '#older'));
  older.disabled = true;
  try {
    const page = await sessions({ limit: PAGE_SIZE, before: next });
    dispatch({ type: 'loaded', items: page.sessions, next: page.next ?? null, older: true, epoch, at: now() });
    setText(older, 'Show older images');
  } catch (error) {
    if (trouble(error) !== null) setText(older, 'They could not be loaded. Try again');
  } finally {
    older.disabled = false;
  }
}

/** @param {string} name @param {Record<string, unknown>} data */
function hear(name, data) {
  if (name === 'reset') {
    dispatch({ type: 'reset' });
    load();
  } else if (name === 'heartbeat') {
    // No event tells that a waiting job has started; and a list that others added to is seen too.
    if (!document.hidden && state.cards.some(({ status }) => status === 'queued' || status === 'processing')) load();
  } else if ((name === 'failed' || name === 'done' || name === 'queued') && typeof data.sessionId === 'string') {
    const news = /** @type {News} */ (/** @type {unknown} */ (data));
    dispatch({ type: 'event', name, data: news, at: now() });
    refresh(name, news);
    refreshCredits();
  }
}

/** @param {State['stream']} stream */
function turn(stream) {
  if (state.stream !== stream) dispatch({ type: 'stream', stream });
}

/**
 * The row behind an event: what the event does not carry (prompt, times), and what changed since.
 * @param {EventName} name
 * @param {News} data
 */
async function refresh(name, data) {
  const { epoch } = state;
  try {
    const item = await freshSession(data.sessionId, (row) => isFresh(row, name, data));
    if (item) dispatch({ type: 'fetched', item, epoch, at: now() });
  } catch (error) {
    trouble(error);
  }
}

/** @type {Promise<void> | null} */
let counting = null;
let countAgain = false;

/** Balance and held; asked once more when something happened while the answer was on its way. */
function refreshCredits() {
  countAgain = true;
  counting ??= (async () => {
    while (countAgain) {
      countAgain = false;
      const { balance, held } = await credits();
      dispatch({ type: 'credits', balance, held });
    }
  })()
    .catch(trouble)
    .then(() => {
      counting = null;
    });
}

/** Who is signed in. The cards of somebody else have no place here. */
async function refreshUser() {
  try {
    const name = await user();
    if (name !== null && state.user !== null && name !== state.user) location.reload();
    else if (name !== null) dispatch({ type: 'user', user: name });
  } catch (error) {
    trouble(error);
  }
}

/** Other tabs begin anew too: they share the cookie. */
async function leave() {
  const button = /** @type {HTMLButtonElement} */ (part(document, '#sign-out'));
  button.disabled = true;
  try {
    await signOut();
    localStorage.setItem('signed-in', String(Date.now()));
    signedOut();
  } catch (error) {
    const problem = trouble(error);
    if (problem !== null) complain(`You are still signed in. ${problem}`);
  } finally {
    button.disabled = false;
  }
}

function signedOut() {
  unfollow?.();
  unfollow = null;
  dispatch({ type: 'list', list: 'signed-out' });
}

/**
 * What to say of an error; null when the answer is to sign in, which the page then shows.
 * @param {unknown} error
 * @returns {string | null}
 */
function trouble(error) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status !== 401) return asSentence(error.message);
  signedOut();
  return null;
}

// -- ordering -----------------------------------------------------------------------------------

/** @type {{order: string, key: string} | null} an order of which nobody knows whether it arrived */
let unknown = null;

/** @param {Event} event */
async function submit(event) {
  event.preventDefault();
  const order = { prompt: prompt.value, ...(size.value ? { size: size.value } : {}) };
  if (!order.prompt.trim()) return complain('Say what the image shall show.');
  // The same order after an unknown answer is the same order: with the same key it is paid once.
  const text = JSON.stringify(order);
  const key = unknown?.order === text ? unknown.key : newKey();
  unknown = null;
  complain('');
  prompt.value = '';
  dispatch({ type: 'submitted', clientKey: key, prompt: order.prompt, at: now() });
  try {
    const { sessionId } = await generate(order, key);
    dispatch({ type: 'accepted', clientKey: key, sessionId, at: now() });
    refresh('queued', { sessionId });
    refreshCredits();
  } catch (error) {
    dispatch({ type: 'refused', clientKey: key });
    const problem = trouble(error);
    if (error instanceof ApiError && error.passing) unknown = { order: text, key };
    if (!prompt.value) prompt.value = order.prompt;
    complain(problem === null ? '' : unknown ? `${problem} Please send it again; it will be paid once.` : problem);
  }
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
  prompt.focus();
}

// -- the screen ---------------------------------------------------------------------------------

function render() {
  const signedIn = state.list !== 'signed-out';
  document.body.dataset.list = state.list;
  show('#form', signedIn);
  show('#signed-out', !signedIn);
  show('#loading', state.list === 'loading');
  show('#trouble', state.list === 'trouble');
  show('#empty', state.list === 'ready' && state.cards.length === 0);
  show('#behind', state.list === 'ready' && state.stream === 'lost');
  show('#older', state.list === 'ready' && !!state.next);
  setText(part(document, '#trouble .problem'), state.problem);
  renderTop(signedIn);
  renderCards();
}

/** @param {boolean} signedIn */
function renderTop(signedIn) {
  const stream = part(document, '#stream');
  stream.hidden = !signedIn;
  stream.dataset.stream = state.list === 'trouble' ? 'lost' : state.stream;
  setText(part(stream, '.word'), state.list === 'trouble' ? 'Offline' : WORDS_OF_STREAM[state.stream]);
  show('#user', state.user !== null);
  setText(part(document, '#user .who'), state.user === null ? '' : `Signed in as ${state.user}`);
  show('#sign-out', signedIn && state.list !== 'loading');
  show('#balance', state.balance !== null);
  setText(part(document, '#balance strong'), count(state.balance ?? 0, 'credit'));
  setText(part(document, '#balance .held'), state.held ? `${state.held.toLocaleString('en')} held` : '');
}

function renderCards() {
  const list = part(document, '#cards');
  const keys = new Set(state.cards.map(({ key }) => key));
  for (const [key, { element }] of views) {
    if (keys.has(key)) continue;
    element.remove();
    views.delete(key);
  }
  const time = Date.now();
  state.cards.forEach((card, index) => {
    const view = views.get(card.key) ?? cardView(open);
    views.set(card.key, view);
    view.show(card, time);
    if (list.children[index] !== view.element) list.insertBefore(view.element, list.children[index] ?? null);
    if (dialog.key() === card.key) dialog.show(card, time);
  });
}

/** @param {string} key */
function open(key) {
  const card = state.cards.find((one) => one.key === key);
  if (card) dialog.open(card, Date.now());
}

/** @param {Card} card */
function announce(card) {
  const line = document.createElement('span');
  line.textContent = announcement(card);
  const news = part(document, '#news');
  news.append(line);
  while (news.children.length > 5) news.firstChild?.remove();
}

/** @param {string} selector @param {boolean} visible */
function show(selector, visible) {
  part(document, selector).hidden = !visible;
}

form.addEventListener('submit', submit);
prompt.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
part(document, '#sign-out').addEventListener('click', leave);
part(document, '#older').addEventListener('click', loadOlder);
for (const button of document.querySelectorAll('.retry')) button.addEventListener('click', load);
document.addEventListener('visibilitychange', () => {
  if (document.hidden) return;
  load(); // perhaps signed in elsewhere
  if (state.user !== null) refreshUser(); // as somebody else
});
addEventListener('storage', ({ key }) => key === 'signed-in' && location.reload()); // as somebody else, perhaps
setInterval(renderCards, 30_000); // "2 min ago"
render();
load();
