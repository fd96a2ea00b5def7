/**
 * What the page knows, and how each piece of news changes it. Pure: values in, values out.
 *
 * News comes twice and in any order: an event of the stream, the answer to a fetch that was asked
 * before the event, a page of the list. Each tells the row of a session as it was at some version, so
 * nothing older than what a card shows overwrites anything of it.
 * Only a `reset` of the stream (the server's history is not ours) makes all cards doubtful: the
 * epoch rises, and what is learnt in the new epoch counts, whatever the card said before.
 */

/** @import {Action, Card, CardStatus, News, State} from './types.js' */

/** @type {Record<CardStatus, number>} orders news without a version; queued and processing alternate */
const RANK = { sending: 0, unsent: 0, queued: 1, processing: 1, completed: 2, failed: 3 };

/** @type {State} */
export const EMPTY = {
  cards: [],
  next: undefined,
  epoch: 0,
  list: 'loading',
  problem: '',
  connection: { is: 'connecting', since: null, told: false },
  gate: null,
  offset: 0,
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
      return withCards(state, [...state.cards.filter((card) => card.key !== action.clientKey), ordered(action, state.epoch)]);
    case 'unsent':
      return withWaiting(state, action.clientKey, (card) => [{ ...card, status: 'unsent', problem: action.problem }]);
    case 'refused':
      return withWaiting(state, action.clientKey, () => []);
    case 'accepted':
      return learn(state, [{ sessionId: action.sessionId, clientKey: action.clientKey }], action.at);
    case 'event':
      return learn(state, [{ ...action.data, status: statusOf(action.name, action.data) }], action.at);
    case 'fetched':
      return action.epoch < state.epoch ? state : learn(state, action.items, action.at);
    case 'loaded':
      return action.epoch < state.epoch ? state : loaded(state, action);
    case 'reset':
      return { ...state, epoch: state.epoch + 1 };
    case 'user':
      return state.list === 'signed-out' ? state : { ...state, user: action.user };
    case 'credits':
      return { ...state, balance: action.balance, held: action.held };
    case 'connection':
      return { ...state, connection: action.connection };
    case 'list':
      return action.list === 'signed-out'
        ? { ...EMPTY, epoch: state.epoch + 1, list: 'signed-out' }
        : { ...state, list: action.list, problem: action.problem ?? '' };
  }
}

/** @param {Card} card @returns {boolean} its run has not ended */
export function isActive({ status }) {
  return status === 'queued' || status === 'processing';
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
    if (old === card) return false;
    if (!old) return action.type === 'event';
    if (card.status === 'unsent') return old.status !== 'unsent';
    return old.status !== card.status && Math.max(RANK[old.status], RANK[card.status]) >= RANK.completed;
  });
}

/**
 * Whether `item` is as new as the event's row, so that no further fetch is needed.
 * @param {News} item
 * @param {News} data of the event
 * @returns {boolean}
 */
export function isFresh(item, data) {
  if (item.version !== undefined && data.version !== undefined) return item.version >= data.version;
  const [run, wanted] = [item.run ?? 0, data.run ?? 1];
  return run === wanted ? RANK[item.status ?? 'sending'] >= RANK[data.status ?? 'queued'] : run > wanted;
}

/**
 * @param {'failed' | 'done' | 'queued'} name
 * @param {News} data
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
function loaded(state, { items, next, older, gate, offset, epoch, at }) {
  const first = state.next === undefined;
  const seen = new Set(items.map((item) => item.sessionId));
  // Of an epoch that is over only what the list confirms stays, as after loading the page again.
  const gone = older ? [] : state.cards.filter((card) => doubted(card, epoch) && !seen.has(card.sessionId ?? ''));
  const kept = gone.length ? state.cards.filter((card) => !gone.includes(card)) : state.cards;
  const known = learn({ ...state, cards: kept }, items, at);
  const turned = first || older || gone.length > 0;
  return {
    ...known,
    list: 'ready',
    problem: '',
    next: turned ? next : state.next,
    gate: gate === undefined || older ? state.gate : gate,
    offset: offset === undefined || Math.abs(offset - state.offset) < 2_000 ? state.offset : offset,
  };
}

/**
 * Merge what is told of some sessions into their cards, or make them one.
 * @param {State} state
 * @param {News[]} all
 * @param {string} at
 * @returns {State}
 */
function learn(state, all, at) {
  /** @type {(Card | null)[]} */
  const cards = [...state.cards];
  /** @type {Map<string, number>} places by session, and of orders without one */
  const bySession = new Map();
  /** @type {Map<string, number>} */
  const byOrder = new Map();
  state.cards.forEach(({ sessionId, clientKey }, place) => {
    if (sessionId !== null) bySession.set(sessionId, place);
    else if (clientKey) byOrder.set(clientKey, place);
  });
  let changed = false;
  for (const news of all) {
    const named = bySession.get(news.sessionId);
    const order = byOrder.get(news.clientKey ?? '');
    const old = joined(cards[named ?? -1], cards[order ?? -1]) ?? stub(news, at, state.epoch);
    const card = merge(old, news, state.epoch);
    if (named !== undefined && card === cards[named]) continue;
    changed = true;
    if (named !== undefined && order !== undefined) cards[order] = null;
    const place = named ?? order ?? cards.length;
    cards[place] = card;
    bySession.set(news.sessionId, place);
    byOrder.delete(news.clientKey ?? '');
  }
  return changed ? withCards(state, cards.filter((card) => card !== null)) : state;
}

/**
 * The card of a session, or of the order that it answers. An event may have come without its key, before
 * the answer that tells which order it belongs to: then there are two, and the order's place is kept.
 * @param {Card | null | undefined} named
 * @param {Card | null | undefined} order
 */
function joined(named, order) {
  if (!named || !order) return named ?? order;
  return { ...named, key: order.key, prompt: named.prompt ?? order.prompt, params: named.params ?? order.params };
}

/**
 * @param {Card} card
 * @param {News} news
 * @param {number} epoch
 * @returns {Card}
 */
function merge(card, news, epoch) {
  const trusted = !doubted(card, epoch);
  const order = trusted ? age(card, news) : 1;
  if (order < 0) return card.whole ? card : filled(card, news);
  const run = news.run ?? card.run;
  const status = news.status ?? (card.sessionId === null ? 'queued' : card.status);
  const old = trusted && run === card.run ? card : null;
  const told = news.version !== undefined; // then null is what the row says, else it says nothing
  /**
   * @template T
   * @param {T | null | undefined} value
   * @param {T | null | undefined} before
   * @returns {T | null}
   */
  const take = (value, before) => (value === undefined || (value === null && !told) ? (before ?? null) : value);
  const details = told ? take(news.error_details, old?.errorDetails) : newest(old?.errorDetails, news.error_details);
  const createdAt = take(news.createdAt, card.createdAt);
  /** @type {Card} */
  const merged = {
    ...card,
    sessionId: news.sessionId,
    clientKey: take(news.clientKey, card.clientKey),
    run,
    status,
    epoch,
    version: news.version ?? (order > 0 ? null : card.version),
    step: news.step ?? (order > 0 ? null : card.step),
    model: take(news.model, card.model),
    prompt: take(news.prompt, card.prompt),
    params: take(news.params, card.params),
    createdAt,
    born: moment(createdAt) || card.born,
    attempts: take(news.attempts, old?.attempts),
    startedAt: take(news.startedAt, old?.startedAt),
    completedAt: take(news.completedAt, old?.completedAt),
    result: status === 'completed' ? take(news.result, old?.result) : null,
    errorDetails: status === 'failed' ? details : null,
    credits: take(news.credits, old?.credits),
    problem: '',
    whole: card.whole || news.prompt !== undefined,
  };
  return same(card, merged) ? card : merged;
}

/**
 * Whether news is older (-1) than what a card shows, the same state of the row (0), or newer (1).
 * @param {Card} card
 * @param {News} news
 */
function age(card, news) {
  const byRun = Math.sign((news.run ?? card.run) - card.run);
  if (byRun) return byRun;
  if (news.version === undefined || card.version === null) {
    return Math.sign(RANK[news.status ?? card.status] - RANK[card.status]);
  }
  const byVersion = Math.sign(news.version - card.version);
  if (byVersion) return byVersion;
  if (news.step === undefined) return card.step === null || !isActive(card) ? 0 : -1;
  return card.step === null ? 1 : Math.sign(news.step - card.step);
}

/**
 * A card that only an event has told of, with what older news knows: better an old prompt than none.
 * @param {Card} card
 * @param {News} news
 * @returns {Card}
 */
function filled(card, news) {
  const known = {
    ...card,
    sessionId: news.sessionId,
    clientKey: card.clientKey ?? news.clientKey ?? null,
    model: card.model ?? news.model ?? null,
    prompt: card.prompt ?? news.prompt ?? null,
    params: card.params ?? news.params ?? null,
    createdAt: card.createdAt ?? news.createdAt ?? null,
  };
  known.born = moment(known.createdAt) || card.born;
  return same(card, known) ? card : known;
}

/**
 * The details that were written later: by the failure's time, then by the refund's, which may follow.
 * @param {Card['errorDetails'] | undefined} ours
 * @param {Card['errorDetails'] | undefined} theirs
 * @returns {Card['errorDetails']}
 */
function newest(ours, theirs) {
  if (!ours || !theirs) return theirs ?? ours ?? null;
  const failed = moment(theirs.failedAt) - moment(ours.failedAt);
  return (failed || moment(theirs.refundedAt) - moment(ours.refundedAt)) < 0 ? ours : theirs;
}

/**
 * Values are compared by what they say: an answer that tells nothing new leaves a card as it is.
 * @param {Card} one
 * @param {Card} other
 */
function same(one, other) {
  return Object.entries(other).every(([name, value]) => {
    const old = one[/** @type {keyof Card} */ (name)];
    return old === value || (typeof value === 'object' && JSON.stringify(old) === JSON.stringify(value));
  });
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
function ordered({ clientKey, prompt, params, at }, epoch) {
  const card = stub({ sessionId: '' }, at, epoch);
  return { ...card, key: clientKey, sessionId: null, clientKey, prompt, params };
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
    version: null,
    step: null,
    model: null,
    prompt: null,
    params: null,
    attempts: null,
    createdAt: null,
    startedAt: null,
    completedAt: null,
    result: null,
    errorDetails: null,
    credits: null,
    problem: '',
    whole: false,
    seenAt: at,
    born: moment(news.createdAt) || FUTURE + moment(at),
    epoch,
  };
}

/** A clock that is behind must not put what is new below what is old: until the row tells, it is the newest. */
const FUTURE = 1e14;

/**
 * @param {State} state
 * @param {string} clientKey of an order without a session
 * @param {(card: Card) => Card[]} change
 */
function withWaiting(state, clientKey, change) {
  const waits = (/** @type {Card} */ card) => card.sessionId === null && card.clientKey === clientKey;
  if (!state.cards.some(waits)) return state;
  return { ...state, cards: state.cards.flatMap((card) => (waits(card) ? change(card) : card)) };
}

/**
 * @param {State} state
 * @param {Card[]} cards
 * @returns {State}
 */
function withCards(state, cards) {
  return { ...state, cards: cards.sort((one, other) => other.born - one.born || (one.key < other.key ? -1 : 1)) };
}

/**
 * Milliseconds since 1970; 0 for none, so that it counts as the oldest.
 * @param {string | null | undefined} at
 */
function moment(at) {
  return Date.parse(at ?? '') || 0;
}
