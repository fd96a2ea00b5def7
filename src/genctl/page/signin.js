/** Spends the link's one-use ticket by a POST, at once; the button is for when nobody answered. */

const form = /** @type {HTMLFormElement} */ (document.getElementById('signin'));
const said = /** @type {HTMLElement} */ (form.querySelector('[role=status]'));
const button = /** @type {HTMLElement} */ (form.querySelector('button'));
const field = /** @type {HTMLInputElement} */ (form.elements.namedItem('ticket'));

field.value = new URLSearchParams(location.search).get('ticket') ?? '';
history.replaceState(null, '', location.pathname); // a spent ticket need not stay in the address

async function signIn() {
  const body = new URLSearchParams({ ticket: field.value });
  const response = await fetch(form.action, { method: 'POST', body, credentials: 'same-origin' });
  if (response.ok) {
    localStorage.setItem('signed-in', String(Date.now())); // other tabs show another user's cards: they begin anew
    location.replace('/');
  } else if (response.status >= 500) said.textContent = `The server answered ${response.status}. Please try again.`;
  else {
    const { error } = await response.json().catch(() => ({}));
    inVain(error?.message ?? `the server answered ${response.status}`);
  }
}

/** @param {string} why */
function inVain(why) {
  said.textContent = `You cannot be signed in: ${why}. “genctl token --user U --link” prints a new link.`;
  button.hidden = true;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  said.textContent = 'Signing you in…';
  await signIn().catch(() => {
    said.textContent = 'The server cannot be reached. Please try again.';
  });
});
if (field.value) form.requestSubmit();
else inVain('this address holds no ticket');
