/** What a client in TypeScript may rely on; tsc reads it, nobody runs it. */

import { createStore } from '../../src/genctl/page/store.js';
import type { ErrorDetails, Told } from '../../src/genctl/page/types.js';

export const wordsOf = (details: ErrorDetails): string | null => {
  switch (details.category) {
    case 'content_policy':
    case 'invalid_request':
      return details.providerMessage; // may be there
    default: {
      const nothing: null = details.providerMessage; // is never there
      return nothing ?? details.userMessage;
    }
  }
};

export const codeOf = (told: Told): string | null => (told.name === 'failed' ? (told.data.error_details?.code ?? null) : null);

export const sessionOf = (told: Told): string => {
  // @ts-expect-error a heartbeat is about no session
  if (told.name === 'heartbeat') return told.data.sessionId;
  return '';
};

export const store = createStore({
  fetch: async () => new Response('{}'),
  events: () => ({ close() {}, wake() {} }),
  now: () => 0,
  base: '/api/seedream4',
  newKey: () => 'key',
});
// @ts-expect-error a snapshot is not changed by who reads it
store.getSnapshot().cards.push();
