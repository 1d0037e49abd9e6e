// A site that is opened from the disk may not start workers: browsers allow them over http only. There the search's
// worker runs in a hidden frame instead, which this file puts in the place of `Worker`. Over http it does nothing.
if (location.protocol === "file:") {
  class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      const worker = this;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      const waiting = [];
      // What the worker sends arrives here; what is sent to it waits until its script has been read.
      inside.postMessage = data => setTimeout(() => {
        const event = new MessageEvent("message", { data });
        if (typeof worker.onmessage === "function") worker.onmessage(event);
        worker.dispatchEvent(event);
      });
      inside.importScripts = (...urls) => urls.reduce(
        (before, each) => before.then(() => new Promise((done, failed) => {
          const script = inside.document.createElement("script");
          script.src = each;
          script.onload = done;
          script.onerror = () => failed(new Error(`${each} cannot be read`));
          inside.document.head.append(script);
        })), Promise.resolve());
      this.postMessage = data => waiting.push(data);
      this.terminate = () => frame.remove();
      const script = inside.document.createElement("script");
      script.src = new URL(url, location.href).href;
      script.onload = () => {
        this.postMessage = data => setTimeout(
          () => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
        waiting.splice(0).forEach(data => this.postMessage(data));
      };
      inside.document.head.append(script);
    }
  }
  window.IFrameWorker = window.Worker = FrameWorker;
}
