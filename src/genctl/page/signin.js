/**
 * Spends the link's one-use ticket by a POST: at once, or by the button where the server wants the person's word,
 * since another site may have led here, or somebody else is signed in. The button is also for another try.
 */

import { tellSignIn } from './typed.js';

const form = /** @type {HTMLFormElement} */ (document.getElementById('signin'));
const said = /** @type {HTMLElement} */ (form.querySelector('[role=status]'));
const button = /** @type {HTMLElement} */ (form.querySelector('button'));
const field = /** @type {HTMLInputElement} */ (form.elements.namedItem('ticket'));
const asks = document.documentElement.dataset.asks === 'true';

field.value = new URLSearchParams(location.search).get('ticket') ?? '';
history.replaceState(null, '', location.pathname); // a spent ticket need not stay in the address

/** @param {Record<string, string>} more */
async function signIn(more) {
  const body = new URLSearchParams({ ticket: field.value, ...more });
  // Where the answer leads is for browsers without scripts; we know the way.
  const response = await fetch(form.action, { method: 'POST', body, credentials: 'same-origin', redirect: 'manual' });
  if (response.ok || response.type === 'opaqueredirect') {
    tellSignIn();
    location.replace('./');
    return;
  }
  const { error } = await response.json().catch(() => ({}));
  if (error?.code === 'AskFirst') say(`${error.message} Do you want that?`);
  else if (response.status >= 500) say(`The server answered ${response.status}. Please try again.`);
  else inVain(error?.message ?? `the server answered ${response.status}`);
}

/** @param {string} text */
function say(text) {
  said.textContent = text;
}

/** @param {string} why */
function inVain(why) {
  say(`You cannot be signed in: ${why}. “genctl token --user U --link” prints a new link.`);
  button.hidden = true;
}

/** @param {Record<string, string>} more */
async function tryIt(more) {
  say('Signing you in…');
  await signIn(more).catch(() => say('The server cannot be reached. Please try again.'));
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  tryIt({ confirmed: '1' });
});
if (!field.value) inVain('this address holds no ticket');
else tryIt(asks ? { asks: '1' } : {});
