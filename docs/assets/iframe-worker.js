// Browsers start no worker for a page on disk. The search's worker then runs in a hidden frame, which may load scripts.
if (location.protocol === "file:") {
  // Messages arrive later than they are sent, as those of a worker do.
  const send = (target, data) => setTimeout(() => {
    const message = new MessageEvent("message", { data });
    target.dispatchEvent(message);
    if (target instanceof FrameWorker) target.onmessage?.(message);
  });

  class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.queue = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<base href="${document.baseURI}"><script>
        window.postMessage = (data) => parent.dispatchEvent(new CustomEvent("worker-reply", { detail: data }));
        window.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, fail) => {
          const script = document.createElement("script");
          Object.assign(script, { src: url, onload: done, onerror: fail });
          document.head.append(script);
        })), Promise.resolve());
      <\/script><script src="${url}"><\/script>`;
      this.frame.onload = () => {
        this.ready = true;
        this.queue.splice(0).forEach((data) => this.postMessage(data));
      };
      this.reply = (event) => send(this, event.detail);
      window.addEventListener("worker-reply", this.reply);
      document.body.append(this.frame);
    }

    postMessage(data) {
      if (!this.ready) return void this.queue.push(data);
      send(this.frame.contentWindow, data);
    }

    terminate() {
      window.removeEventListener("worker-reply", this.reply);
      this.frame.remove();
    }
  }
  window.Worker = FrameWorker;
}
