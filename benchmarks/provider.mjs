// The provider of the benchmark: answers 400 at once, as Ark does for a prompt that its filter refuses.
// WAIT_MS: answers so many milliseconds later.
import { createServer } from "node:http";

const body = JSON.stringify({
  error: {
    code: "OutputImageSensitiveContentDetected",
    message: "The request failed because the output image may contain sensitive information.",
    param: "",
    type: "",
  },
});
const wait = Number(process.env.WAIT_MS ?? 0);

createServer((request, response) => {
  request.resume();
  request.on("end", () => {
    const answer = () => {
      response.writeHead(400, { "content-type": "application/json", "content-length": body.length });
      response.end(body);
    };
    if (wait) setTimeout(answer, wait);
    else answer();
  });
}).listen(Number(process.env.PORT), "127.0.0.1", 4096);
