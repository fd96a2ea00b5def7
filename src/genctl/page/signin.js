/** Spends the link's one-use ticket by a POST, at once; the button is for when that went wrong. */

const form = /** @type {HTMLFormElement} */ (document.getElementById('signin'));
const said = /** @type {HTMLElement} */ (form.querySelector('[role=status]'));
const field = /** @type {HTMLInputElement} */ (form.elements.namedItem('ticket'));

field.value = new URLSearchParams(location.search).get('ticket') ?? '';
history.replaceState(null, '', location.pathname); // a spent ticket need not stay in the address

async function signIn() {
  const body = new URLSearchParams({ ticket: field.value });
  const response = await fetch(form.action, { method: 'POST', body, credentials: 'same-origin' });
  if (response.ok) location.replace('/');
  else if (response.status >= 500) said.textContent = `The server answered ${response.status}. Please try again.`;
  else said.textContent = 'This link was used already or is too old. Run “genctl demo --keep” for a new one.';
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  said.textContent = 'Signing you in…';
  await signIn().catch(() => {
    said.textContent = 'The server cannot be reached. Please try again.';
  });
});
if (field.value) form.requestSubmit();
else said.textContent = 'This address holds no ticket. Run “genctl demo --keep”: its last line is a sign-in link.';
