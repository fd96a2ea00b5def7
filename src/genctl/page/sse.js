/** Server-sent events as the WHATWG reads them, for streams that come by fetch and for recorded ones. */

/** @typedef {{name: string, data: string, id: string}} SentEvent */

/**
 * Returns what takes pieces of a stream, however it was cut, and hands on each event that is complete.
 * @param {(event: SentEvent) => void} hear
 * @returns {(text: string) => void}
 */
export function reader(hear) {
  let [rest, name, id] = ['', '', ''];
  /** @type {string[]} */
  let data = [];
  let begins = true;
  let afterCr = false;

  /** @param {string} line */
  const take = (line) => {
    if (line === '') {
      if (data.length) hear({ name: name || 'message', data: data.join('\n'), id });
      [name, data] = ['', []];
      return;
    }
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') name = value;
    else if (field === 'data') data.push(value);
    else if (field === 'id' && !value.includes('\0')) id = value;
  };

  return (text) => {
    if (begins && text) [text, begins] = [text.replace(/^\uFEFF/, ''), false];
    if (afterCr && text) [text, afterCr] = [text.replace(/^\n/, ''), false]; // the half of a CRLF
    afterCr ||= text.endsWith('\r');
    const lines = (rest + text).split(/\r\n|\n|\r/);
    rest = lines.pop() ?? '';
    lines.forEach(take);
  };
}
