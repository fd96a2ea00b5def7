/** The reader of streams that come by fetch: bytes as foreign servers send them. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { reader } from '../../src/genctl/page/sse.js';

const CASES = [
  ['a BOM', '\uFEFFdata: x\n\n', [['message', 'x', '']]],
  ['CR alone', 'event: a\rdata: x\r\rdata: y\r\r\n', [['a', 'x', ''], ['message', 'y', '']]],
  ['CRLF', 'id: 1\r\ndata: x\r\n\r\n', [['message', 'x', '1']]],
  ['two lines of data', 'data: x\ndata:y\n\n', [['message', 'x\ny', '']]],
  ['a last event without its blank line', 'data: x\n\ndata: y\n', [['message', 'x', '']]],
  ['an id with NUL', 'id: 1\ndata: x\n\nid: 2\0\ndata: y\n\n', [['message', 'x', '1'], ['message', 'y', '1']]],
  ['an id without data', 'id: 7\n\ndata: x\n\n', [['message', 'x', '7']]],
  ['comments and unknown fields', ': hi\nfoo: bar\nretry: 5\ndata\n\n', [['message', '', '']]],
  ['one space only', 'data:  x\n\n', [['message', ' x', '']]],
];

for (const [name, text, wanted] of CASES) {
  test(`${name} is read as the standard says, however it is cut`, () => {
    for (const size of [1, 2, 3, text.length]) {
      const got = [];
      const read = reader((event) => got.push([event.name, event.data, event.id]));
      for (let at = 0; at < text.length; at += size) read(text.slice(at, at + size));
      assert.deepEqual(got, wanted, `in pieces of ${size}`);
    }
  });
}
