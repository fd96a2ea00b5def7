/** What a person has typed outlives a reload, a sign-in and a crash: it is in the tab's own storage, by its user. */

/** @import {Unsent} from './types.js' */

/**
 * @template T
 * @param {string} name
 * @param {T} empty
 * @returns {{read: (user: string | null) => T, write: (value: T, user: string | null) => void}}
 */
export function kept(name, empty) {
  return {
    read: (user) => {
      try {
        const { of, value } = JSON.parse(sessionStorage.getItem(name) ?? '{}');
        return of === user && value ? value : empty;
      } catch {
        return empty; // storage is forbidden, or was written by somebody else
      }
    },
    write: (value, user) => {
      try {
        sessionStorage.setItem(name, JSON.stringify({ of: user, value }));
      } catch {
        // it is full or forbidden: then the page is all there is
      }
    },
  };
}

/** @type {Unsent[]} */
const NONE = [];
export const unsent = kept('genctl unsent', NONE);
export const draft = kept('genctl draft', { prompt: '', size: '' });

/** Tell the other tabs that somebody else may be signed in now: they begin anew. */
export function tellSignIn() {
  try {
    localStorage.setItem('signed-in', String(Date.now()));
  } catch {
    // they notice when they are looked at
  }
}
