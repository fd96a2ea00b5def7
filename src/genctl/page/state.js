/**
 * What the page knows, and how each piece of news changes it. Pure: values in, values out.
 *
 * News comes twice and in any order: an event of the stream, the answer to a fetch that was asked
 * before the event, a page of the list. So a card only ever moves forward: to a higher run, or within
 * a run to a later status. `failed` is the last one: nothing of the same run takes it back.
 * Only a `reset` of the stream (the server's history is not ours) makes all cards doubtful: the
 * epoch rises, and what is learnt in the new epoch counts, whatever the card said before.
 */

/** @typedef {'sending' | 'queued' | 'processing' | 'completed' | 'failed'} Status */
/** @typedef {{url: string, size?: string | null, expiresAt?: string | null}} Picture */
/** @typedef {{images?: Picture[]}} Result */
/** @typedef {{reserved?: number | null, refunded?: number | null}} Credits */

/**
 * Why a run failed, as the API gives it; times are RFC 3339 in UTC.
 * @typedef {object} ErrorDetails
 * @property {string} [code]
 * @property {string} [category]
 * @property {string | null} [userMessage]
 * @property {number | null} [providerStatus]
 * @property {string | null} [providerCode]
 * @property {string | null} [providerMessage]
 * @property {boolean} [fatal]
 * @property {string} [outcome]
 * @property {number} [attempts]
 * @property {number} [maxAttempts]
 * @property {string | null} [firstAttemptAt]
 * @property {string | null} [failedAt]
 * @property {number | null} [reservationAmount]
 * @property {number} [refundedCredits]
 * @property {string | null} [refundedAt]
 * @property {string | null} [refundError]
 * @property {string | null} [requestId]
 * @property {string} [provider]
 */

/**
 * A session as the API or the stream shows it; any part may be missing.
 * @typedef {object} News
 * @property {string} sessionId
 * @property {string | null} [clientKey]
 * @property {Status} [status]
 * @property {string | null} [model]
 * @property {string | null} [prompt]
 * @property {number} [run]
 * @property {number | null} [attempts]
 * @property {string | null} [createdAt]
 * @property {string | null} [startedAt]
 * @property {string | null} [completedAt]
 * @property {Result | null} [result]
 * @property {ErrorDetails | null} [error_details]
 * @property {Credits | null} [credits]
 */

/**
 * `key` never changes while the card is on the page; `sessionId` is null until the server gave one.
 * @typedef {object} Card
 * @property {string} key
 * @property {string | null} sessionId
 * @property {string | null} clientKey
 * @property {Status} status
 * @property {number} run
 * @property {string | null} model
 * @property {string | null} prompt
 * @property {number | null} attempts
 * @property {string | null} createdAt
 * @property {string | null} startedAt
 * @property {string | null} completedAt
 * @property {Result | null} result
 * @property {ErrorDetails | null} errorDetails
 * @property {Credits | null} credits
 * @property {string} seenAt when the page first heard of it: its place until `createdAt` is known
 * @property {number} epoch in which it was last confirmed
 */

/**
 * `next` asks for older sessions: undefined before the first page of the list, null at its end.
 * @typedef {object} State
 * @property {Card[]} cards newest first
 * @property {string | null | undefined} next
 * @property {number} epoch
 * @property {'loading' | 'ready' | 'trouble' | 'signed-out'} list
 * @property {string} problem a sentence for `trouble`
 * @property {'connecting' | 'live' | 'lost'} stream
 * @property {string | null} user who is signed in, null while nobody has told
 * @property {number | null} balance
 * @property {number | null} held
 */

/** @typedef {'failed' | 'done' | 'queued'} EventName */

/**
 * `epoch` of what was fetched is the one in which it was asked for; `at` is the page's time.
 * @typedef {{type: 'submitted', clientKey: string, prompt: string, at: string}
 *   | {type: 'accepted', clientKey: string, sessionId: string, at: string}
 *   | {type: 'refused', clientKey: string}
 *   | {type: 'event', name: EventName, data: News, at: string}
 *   | {type: 'fetched', item: News, epoch: number, at: string}
 *   | {type: 'loaded', items: News[], next: string | null, older: boolean, epoch: number, at: string}
 *   | {type: 'reset'}
 *   | {type: 'user', user: string | null}
 *   | {type: 'credits', balance: number, held: number}
 *   | {type: 'stream', stream: State['stream']}
 *   | {type: 'list', list: State['list'], problem?: string}} Action
 */

/** @type {Record<Status, number>} queued and processing alternate: a retry waits again */
const RANK = { sending: 0, queued: 1, processing: 1, completed: 2, failed: 3 };

/** @type {State} */
export const EMPTY = {
  cards: [],
  next: undefined,
  epoch: 0,
  list: 'loading',
  problem: '',
  stream: 'connecting',
  user: null,
  balance: null,
  held: null,
};

/**
 * @param {State} state
 * @param {Action} action
 * @returns {State}
 */
export function reduce(state, action) {
  switch (action.type) {
    case 'submitted':
      return withCards(state, [...state.cards, optimistic(action, state.epoch)]);
    case 'accepted':
      return learn(state, { ...action, status: 'queued' }, action.at);
    case 'refused':
      return withCards(
        state,
        state.cards.filter((card) => card.sessionId !== null || card.clientKey !== action.clientKey),
      );
    case 'event':
      return learn(state, { ...action.data, status: statusOf(action.name, action.data) }, action.at);
    case 'fetched':
      return action.epoch < state.epoch ? state : learn(state, action.item, action.at);
    case 'loaded':
      return action.epoch < state.epoch ? state : loaded(state, action);
    case 'reset':
      return { ...state, epoch: state.epoch + 1 };
    case 'user':
      return state.list === 'signed-out' ? state : { ...state, user: action.user };
    case 'credits':
      return { ...state, balance: action.balance, held: action.held };
    case 'stream':
      return { ...state, stream: action.stream };
    case 'list':
      return action.list === 'signed-out'
        ? { ...EMPTY, epoch: state.epoch + 1, list: 'signed-out' }
        : { ...state, list: action.list, problem: action.problem ?? '' };
  }
}

/**
 * The cards that reached an end or left one by `action`: what a person who cannot see must be told.
 * The first sight of a list tells nothing; a card that an event brought does.
 * @param {State} before
 * @param {State} after
 * @param {Action} action
 * @returns {Card[]}
 */
export function flips(before, after, action) {
  if (before.cards === after.cards) return [];
  const known = new Map(before.cards.map((card) => [card.key, card]));
  return after.cards.filter((card) => {
    const old = known.get(card.key);
    if (!old) return action.type === 'event';
    return old.status !== card.status && Math.max(RANK[old.status], RANK[card.status]) >= RANK.completed;
  });
}

/**
 * Whether `item` shows at least what the event told, so that no further fetch is needed.
 * @param {News} item
 * @param {EventName} name
 * @param {News} data
 * @returns {boolean}
 */
export function isFresh(item, name, data) {
  const [run, wanted] = [item.run ?? 0, data.run ?? 1];
  if (run !== wanted) return run > wanted;
  return RANK[item.status ?? 'sending'] >= RANK[statusOf(name, data)];
}

/**
 * @param {EventName} name
 * @param {News} data
 * @returns {Status}
 */
function statusOf(name, data) {
  if (name === 'failed') return 'failed';
  if (name === 'done') return 'completed';
  return data.status === 'processing' ? 'processing' : 'queued';
}

/**
 * @param {State} state
 * @param {Extract<Action, {type: 'loaded'}>} action
 * @returns {State}
 */
function loaded(state, { items, next, older, epoch, at }) {
  const first = state.next === undefined;
  const seen = new Set(items.map((item) => item.sessionId));
  // Of an epoch that is over only what the list confirms stays, as after loading the page again.
  const gone = older ? [] : state.cards.filter((card) => doubted(card, epoch) && !seen.has(card.sessionId ?? ''));
  const kept = gone.length ? state.cards.filter((card) => !gone.includes(card)) : state.cards;
  const known = items.reduce((so_far, item) => learn(so_far, item, at), { ...state, cards: kept });
  const turned = first || older || gone.length > 0;
  return { ...known, list: 'ready', problem: '', next: turned ? next : state.next };
}

/**
 * @param {State} state
 * @param {News} news
 * @param {string} at
 * @returns {State}
 */
function learn(state, news, at) {
  const { cards, epoch } = state;
  const named = cards.find((card) => card.sessionId === news.sessionId);
  const waiting = cards.find(
    (card) => card.sessionId === null && !!news.clientKey && card.clientKey === news.clientKey,
  );
  // The event may have come without its key, before the answer that tells which card it belongs to.
  const own = named && waiting ? { ...named, key: waiting.key, prompt: named.prompt ?? waiting.prompt } : named;
  const old = own ?? waiting ?? stub(news, at, epoch);
  const others = cards.filter((card) => card !== named && card !== waiting);
  return withCards(state, [...others, merge({ ...old, sessionId: news.sessionId }, news, epoch)]);
}

/**
 * @param {Card} card
 * @param {News} news
 * @param {number} epoch
 * @returns {Card}
 */
function merge(card, news, epoch) {
  const run = news.run ?? card.run;
  const status = news.status ?? card.status;
  const known = {
    ...card,
    clientKey: card.clientKey ?? news.clientKey ?? null,
    model: card.model ?? news.model ?? null,
    prompt: card.prompt ?? news.prompt ?? null,
    createdAt: card.createdAt ?? news.createdAt ?? null,
  };
  const trusted = !doubted(card, epoch);
  if (trusted && (run < card.run || (run === card.run && RANK[status] < RANK[card.status]))) return known;
  const old = trusted && run === card.run ? card : null;
  const details = newest(old?.errorDetails ?? null, news.error_details ?? null);
  return {
    ...known,
    run,
    status,
    epoch,
    attempts: news.attempts ?? old?.attempts ?? null,
    startedAt: news.startedAt ?? old?.startedAt ?? null,
    completedAt: news.completedAt ?? old?.completedAt ?? null,
    result: status === 'completed' ? (news.result ?? old?.result ?? null) : null,
    errorDetails: status === 'failed' ? details : null,
    credits: news.credits ?? old?.credits ?? null,
  };
}

/**
 * The details that were written later: by the failure's time, then by the refund's, which may follow.
 * @param {ErrorDetails | null} ours
 * @param {ErrorDetails | null} theirs
 * @returns {ErrorDetails | null}
 */
function newest(ours, theirs) {
  if (!ours || !theirs) return theirs ?? ours;
  const failed = moment(theirs.failedAt) - moment(ours.failedAt);
  return (failed || moment(theirs.refundedAt) - moment(ours.refundedAt)) < 0 ? ours : theirs;
}

/**
 * @param {Card} card
 * @param {number} epoch
 */
function doubted(card, epoch) {
  return card.sessionId !== null && card.epoch < epoch;
}

/**
 * @param {Extract<Action, {type: 'submitted'}>} action
 * @param {number} epoch
 * @returns {Card}
 */
function optimistic({ clientKey, prompt, at }, epoch) {
  return { ...stub({ sessionId: '' }, at, epoch), key: clientKey, sessionId: null, clientKey, prompt };
}

/**
 * @param {News} news
 * @param {string} at
 * @param {number} epoch
 * @returns {Card}
 */
function stub(news, at, epoch) {
  return {
    key: news.sessionId,
    sessionId: news.sessionId,
    clientKey: null,
    status: 'sending',
    run: news.run ?? 1,
    model: null,
    prompt: null,
    attempts: null,
    createdAt: null,
    startedAt: null,
    completedAt: null,
    result: null,
    errorDetails: null,
    credits: null,
    seenAt: at,
    epoch,
  };
}

/**
 * @param {State} state
 * @param {Card[]} cards
 * @returns {State}
 */
function withCards(state, cards) {
  const born = (/** @type {Card} */ card) => moment(card.createdAt ?? card.seenAt);
  return { ...state, cards: cards.sort((one, other) => born(other) - born(one) || (one.key < other.key ? -1 : 1)) };
}

/**
 * Milliseconds since 1970; 0 for none, so that it counts as the oldest.
 * @param {string | null | undefined} at
 */
function moment(at) {
  return Date.parse(at ?? '') || 0;
}
