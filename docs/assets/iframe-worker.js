// Browsers start no worker for a page on disk. The search's worker then runs in a hidden frame, which may load scripts.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
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
      window.addEventListener("worker-reply", ({ detail }) => {
        this.dispatchEvent(new MessageEvent("message", { data: detail }));
      });
      document.body.append(this.frame);
    }

    postMessage(data) {
      if (!this.ready) return void this.queue.push(data);
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
