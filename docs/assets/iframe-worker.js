// Browsers refuse workers in pages that are opened from a folder (file://). There, the search worker runs in a hidden
// frame, which has the same interface: postMessage, onmessage, addEventListener("message").
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.onmessage = null
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      const place = () => {
        document.body.append(this.frame)
        this.load(new URL(url, location.href).href)
      }
      document.body ? place() : addEventListener("DOMContentLoaded", place)
    }

    load(url) {
      const inside = this.frame.contentWindow
      inside.postMessage = data => setTimeout(() => this.receive(data))
      inside.importScripts = (...urls) =>
        urls.reduce((before, one) => before.then(() => this.script(one)), Promise.resolve())
      this.script(url).then(() => {
        this.ready = true
        this.waiting.splice(0).forEach(data => this.postMessage(data))
      })
    }

    script(url) {
      const page = this.frame.contentDocument
      return new Promise((done, failed) => {
        const script = page.createElement("script")
        script.src = url
        script.onload = done
        script.onerror = failed
        page.body.append(script)
      })
    }

    receive(data) {
      const event = new MessageEvent("message", { data })
      this.dispatchEvent(event)
      if (this.onmessage) this.onmessage(event)
    }

    postMessage(data) {
      if (!this.ready) return void this.waiting.push(data)
      const inside = this.frame.contentWindow
      inside.dispatchEvent(new inside.MessageEvent("message", { data }))
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker
}
