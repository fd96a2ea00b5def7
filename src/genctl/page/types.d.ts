/**
 * The shapes of the API, of its stream, and of the page's store. JSON Schemas of what comes over the wire are
 * in docs/schemas/; a test keeps the two together.
 */

export type Status = 'queued' | 'processing' | 'completed' | 'failed';
/** A card may also be an order on its way, or one that could not be sent. */
export type CardStatus = Status | 'sending' | 'unsent';

/** These two speak of the request, so its user sees the provider's own words. */
export type OpenCategory = 'content_policy' | 'invalid_request';
/** These speak of the account, the provider or the road to it: the provider's words are null. */
export type ClosedCategory =
  | 'auth' | 'quota' | 'rate_limit' | 'server' | 'network' | 'internal' | 'config' | 'cancelled';
export type Category = OpenCategory | ClosedCategory;

interface DetailsOfAll {
  code: string;
  userMessage: string;
  fatal: boolean;
  /** `unknown`: the provider may have done and billed the work. */
  outcome: 'refused' | 'unknown';
  attempts: number;
  maxAttempts: number;
  firstAttemptAt: string | null;
  failedAt: string | null;
  reservationAmount: number | null;
  /** What the release returned, never what was meant to be returned. */
  refundedCredits: number;
  refundedAt: string | null;
  refundError: string | null;
  provider: string;
}

export interface OpenDetails extends DetailsOfAll {
  category: OpenCategory;
  providerStatus: number | null;
  providerCode: string | null;
  providerMessage: string | null;
  providerBody: string | null;
  requestId: string | null;
}

export interface ClosedDetails extends DetailsOfAll {
  category: ClosedCategory;
  providerStatus: null;
  providerCode: null;
  providerMessage: null;
  providerBody: null;
  requestId: null;
}

/** Why a run failed, told apart by `category`. */
export type ErrorDetails = OpenDetails | ClosedDetails;

export interface Picture {
  url: string;
  size?: string | null;
  expiresAt?: string | null;
}

/** An image that a set lacks: its place in the set, from 1, and why, as its user may read it. */
export interface RefusedImage {
  place: number;
  code: string;
  category: Category;
  userMessage: string;
}

export interface Result {
  images?: Picture[];
  refused?: RefusedImage[];
}

export interface Credits {
  reserved?: number | null;
  refunded?: number | null;
}

/**
 * A session as the API or the stream shows it; an event has a part of it. `version` numbers the newest change
 * that a stream shows (0: none yet), `step` the claims and retries within it: together they order all that is
 * told of one session.
 */
export interface News {
  sessionId: string;
  clientKey?: string | null;
  status?: Status;
  version?: number;
  step?: number;
  model?: string | null;
  prompt?: string | null;
  params?: Record<string, unknown> | null;
  run?: number;
  attempts?: number | null;
  createdAt?: string | null;
  startedAt?: string | null;
  completedAt?: string | null;
  result?: Result | null;
  error_details?: Partial<ErrorDetails> | null;
  credits?: Credits | null;
}

interface OfRow {
  sessionId: string;
  clientKey: string | null;
  model: string | null;
  run: number;
  version: number;
}

/** What a stream tells, by the event's name. An id comes with all but `heartbeat`, `reset` and `bye`. */
export interface Events {
  ready: { lastEventId?: string };
  heartbeat: { lastEventId: string | null; fresh?: boolean; since?: string };
  failed: OfRow & { status: 'failed'; error_details: ErrorDetails | null };
  done: OfRow & { status: 'completed'; result: Result | null };
  queued: OfRow & { status: 'queued' | 'processing' };
  reset: { reason?: string };
  bye: { reason?: string; why?: string };
}
export type EventName = keyof Events;
export type Told = { [N in EventName]: { name: N; data: Events[N]; id: string } }[EventName];

/** `key` never changes while the card is there; `sessionId` is null until the server gave one. */
export interface Card {
  key: string;
  sessionId: string | null;
  clientKey: string | null;
  status: CardStatus;
  run: number;
  /** Null: it was told without one. */
  version: number | null;
  step: number | null;
  model: string | null;
  prompt: string | null;
  params: Record<string, unknown> | null;
  attempts: number | null;
  createdAt: string | null;
  startedAt: string | null;
  completedAt: string | null;
  result: Result | null;
  errorDetails: Partial<ErrorDetails> | null;
  credits: Credits | null;
  /** Why an order is `unsent`. */
  problem: string;
  /** It has been told as a row, not by events alone. */
  whole: boolean;
  /** When the store first heard of it, by the clock of this side. */
  seenAt: string;
  /** Its place: milliseconds since 1970, larger comes first. */
  born: number;
  epoch: number;
}

/**
 * `live`: a stream vouches that nothing is missing. `catching-up`: it ended or has just begun, and nobody need
 * be told. `stale`: since `since` nobody vouches. `offline`: nor does the API answer. `told`: it has lasted so
 * long that a person should see it.
 */
export interface Connection {
  is: 'connecting' | 'live' | 'catching-up' | 'stale' | 'offline';
  since: string | null;
  told: boolean;
}

/** Whether jobs are carried out now; `until` null: nobody knows until when not. */
export interface Gate {
  state: 'open' | 'paused' | 'busy';
  until?: string | null;
}

export interface State {
  /** Newest first. An unchanged card is the same object, an unchanged list the same array. */
  cards: readonly Card[];
  /** What asks for older ones: undefined before the first page, null at the end. */
  next: string | null | undefined;
  epoch: number;
  list: 'loading' | 'ready' | 'trouble' | 'signed-out';
  problem: string;
  connection: Connection;
  gate: Gate | null;
  /** What to add to this side's clock to have the server's, which made all times: 0 unless it is far off. */
  offset: number;
  user: string | null;
  balance: number | null;
  held: number | null;
}

/** `epoch` of what was fetched is that in which it was asked for; `at` is this side's time. */
export type Action =
  | { type: 'submitted'; clientKey: string; prompt: string; params: Record<string, unknown>; at: string }
  | { type: 'unsent'; clientKey: string; problem: string }
  | { type: 'accepted'; clientKey: string; sessionId: string; at: string }
  | { type: 'refused'; clientKey: string }
  | { type: 'event'; name: 'failed' | 'done' | 'queued'; data: News; at: string }
  | { type: 'fetched'; items: News[]; epoch: number; at: string }
  | { type: 'loaded'; items: News[]; next: string | null; older: boolean; gate?: Gate | null; offset?: number; epoch: number; at: string }
  | { type: 'reset' }
  | { type: 'user'; user: string | null }
  | { type: 'credits'; balance: number; held: number }
  | { type: 'connection'; connection: Connection }
  | { type: 'list'; list: State['list']; problem?: string };

/**
 * What a source of events tells. `joined`: from here on it tells all, but the list must be looked at for what was
 * before; `ended`: as streams do, the next one comes by itself; `refused`: whoever answered gave no stream;
 * `silent`: a heartbeat was due, and has not come yet.
 */
export interface Ear {
  hear(name: EventName, data: Record<string, unknown>, id: string): void;
  turn(what: 'opening' | 'joined' | 'ended' | 'lost' | 'refused' | 'silent'): void;
}

export interface Following {
  close(): void;
  /** Open it again, unless it is sure to be alive. */
  wake(): void;
}

/** Follow the stream behind `cursor`, for `user`. */
export type EventSourceOf = (from: { cursor: string; user: string | null }, ear: Ear) => Following;

/** An order that no answer has come to yet. */
export interface Unsent {
  clientKey: string;
  prompt: string;
  params: Record<string, unknown>;
  problem: string;
}

export interface StoreOptions {
  /** As the platform's; adds what says who asks, where a cookie does not. */
  fetch: (path: string, init?: RequestInit) => Promise<Response>;
  events: EventSourceOf;
  /** Milliseconds since 1970. */
  now?: () => number;
  /** The address of the tool's API, before `/sessions`; empty where `fetch` adds it. */
  base?: string;
  /** Where `whoami` and `signout` are: that of the page. */
  root?: string;
  /** How many sessions a page of the list has. */
  pageSize?: number;
  /** A key that nobody else has, for each order. */
  newKey?: () => string;
  /** Where unsent orders outlive this store: sessionStorage behind two functions. */
  keep?: { read(user: string | null): Unsent[]; write(orders: Unsent[], user: string | null): void };
  /** Somebody else is signed in by now; without this the store is signed out. */
  onOtherUser?: () => void;
  /** Whether anybody looks. */
  isVisible?: () => boolean;
  random?: () => number;
  timers?: { set(what: () => void, ms: number): unknown; clear(timer: unknown): void };
}

export interface Ordered {
  /** A sentence, when the order was refused for good: nothing was paid, its card is `unsent`. */
  refusal: string | null;
  clientKey: string;
}

export interface Store {
  getSnapshot(): State;
  subscribe(listener: () => void): () => void;
  /** The cards that an action has ended, or brought back, for those who cannot see them flip. */
  onFlips(listener: (cards: Card[]) => void): () => void;
  start(): void;
  stop(): void;
  /** Look again at once: the page came back, or a person pressed a button. */
  wake(): void;
  older(): Promise<string | null>;
  order(prompt: string, params?: Record<string, unknown>): Promise<Ordered>;
  /** Send an unsent order again, under its key: it is paid once. */
  resend(clientKey: string): Promise<Ordered>;
  discard(clientKey: string): void;
  /** A new session with the same prompt, model and parameters. */
  retry(key: string): Promise<Ordered>;
  /** Resolves to a sentence when it was not cancelled. */
  cancel(key: string): Promise<string | null>;
  refreshCredits(): Promise<void>;
  /** Resolves to a sentence when the person is still signed in. */
  signOut(): Promise<string | null>;
}

export type CreateStore = (options: StoreOptions) => Store;
