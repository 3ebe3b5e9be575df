// A model on loopback for the gateway under test: answers every chat with the nonce that it finds in it, after a while if it
// is asked to be SLOW. It writes a line for each chat.  Usage: node model.mjs LOG; it prints its port.
import { createServer } from "node:http";
import { appendFileSync } from "node:fs";

createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece));
  request.on("end", () => {
    const { stream, messages = [] } = body ? JSON.parse(body) : {};
    const asked = JSON.stringify(messages.filter((message) => message.role === "user"));
    const nonce = asked.match(/NONCE-[0-9a-z]+/g)?.at(-1) ?? "nothing";
    if (messages.length > 0) appendFileSync(process.argv[2], `${nonce}\n`);
    const part = (delta, finish) => ({
      id: "c1", object: stream ? "chat.completion.chunk" : "chat.completion", created: 1, model: "stub",
      choices: [{ index: 0, [stream ? "delta" : "message"]: delta, finish_reason: finish }],
      usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 },
    });
    const words = { role: "assistant", content: `seen ${nonce}` };
    setTimeout(() => {
      response.setHeader("content-type", stream ? "text/event-stream" : "application/json");
      if (!stream) return response.end(JSON.stringify(part(words, "stop")));
      response.write(`data: ${JSON.stringify(part(words, null))}\n\n`);
      response.write(`data: ${JSON.stringify(part({}, "stop"))}\n\n`);
      response.end("data: [DONE]\n\n");
    }, asked.includes("SLOW") ? 8000 : 0);
  });
}).listen(0, "127.0.0.1", function () {
  console.log(this.address().port);
});
