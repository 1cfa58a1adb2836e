"""The built site of the OHIF viewer, and a server that shows it and an archive from one address."""

import hashlib
import http.client
import os
import subprocess
import tarfile
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PACKAGE, VERSION = "@ohif/app", "3.12.10"
SHA256 = "fbabd410be33e5b9898931b725229b9da9553aac339914b5c29796d3aa5d4b2d"
# Without prompts and the tour, since nobody answers them; one archive, under the viewer's own address.
CONFIG = """
localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']));
window.config = {
  routerBasename: null,
  extensions: [],
  modes: [],
  showStudyList: true,
  maxNumberOfWebWorkers: 2,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: 'never' },
  disableConfirmationPrompts: true,
  defaultDataSourceName: 'archive',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
    sourceName: 'archive',
    configuration: {
      friendlyName: 'Archive',
      name: 'archive',
      wadoUriRoot: '/dicom-web',
      qidoRoot: '/dicom-web',
      wadoRoot: '/dicom-web',
      qidoSupportsIncludeField: false,
      imageRendering: 'wadors',
      thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true,
      supportsFuzzyMatching: false,
      supportsWildcard: true,
      omitQuotationForMultipartRequest: true,
      bulkDataURI: { enabled: true },
    },
  }],
};
"""


def cache_folder() -> Path:
    """Where the site is kept: outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "volseg" / f"ohif-{VERSION}"


def download() -> Path:
    """The folder of the site, from the cache or from npm.

    Raises:
        RuntimeError: npm's package is not the one that was tried.
    """
    folder = cache_folder()
    site = folder / "package" / "dist"
    if not site.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True, capture_output=True)
        (packed,) = folder.glob("*.tgz")
        found = hashlib.sha256(packed.read_bytes()).hexdigest()
        if found != SHA256:
            raise RuntimeError(f"{packed} has the SHA-256 {found}, expected {SHA256}; another package than was tried.")
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
    return site


class _Handler(SimpleHTTPRequestHandler):
    """Files of the site; its page for every unknown path; the archive behind /dicom-web."""

    archive: str
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/dicom-web"):
            self._pass_on()
        elif self.path.split("?")[0] == "/app-config.js":
            self._answer(200, {"Content-Type": "text/javascript"}, CONFIG.encode())
        else:
            if not Path(self.translate_path(self.path)).is_file():
                self.path = "/index.html"
            super().do_GET()

    def _pass_on(self):
        kept = {name: value for name, value in self.headers.items() if name.lower() in ("accept", "range")}
        connection = http.client.HTTPConnection(self.archive)
        # Orthanc builds the addresses that it answers from the host it was asked as.
        connection.request("GET", self.path, headers=kept | {"Host": self.headers["Host"]})
        answer = connection.getresponse()
        body = answer.read()
        self._answer(answer.status, {"Content-Type": answer.getheader("Content-Type", "application/json")}, body)
        connection.close()

    def _answer(self, status, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self):
        # The viewer shares memory between its workers, which browsers allow only to isolated pages.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_):
        """Nothing: the terminal is for the check."""


@contextmanager
def served(site: Path, archive: str):
    """Serve the site on loopback with the archive ("host:port") behind it, and give its address."""
    handler = type("Handler", (_Handler,), {"archive": archive})
    with ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: handler(*given, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
