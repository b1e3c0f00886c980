//! A headless Chromium that is told what to do over its debugging pipe: messages in JSON, each ended by a
//! zero byte, at the descriptors 3 and 4 of the browser.

use std::io::{BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Fails instead of skipping when there is no browser.
const REQUIRE: &str = "KRAKEN_REQUIRE_CLIENTS";
/// Names a browser in another place.
const PROGRAM: &str = "KRAKEN_CHROMIUM";
const PROGRAMS: [&str; 3] = ["chromium-headless-shell", "chromium", "chromium-browser"];
/// How long the browser may take for anything.
const PATIENCE: Duration = Duration::from_secs(150);

/// The browser that is here; nothing is a reason to skip a test, and says so.
pub(crate) fn program() -> Option<String> {
    if let Ok(program) = std::env::var(PROGRAM) {
        return Some(program);
    }
    let runs = |program: &&str| {
        let ran = Command::new(program).arg("--version").output();
        ran.is_ok_and(|ran| ran.status.success())
    };
    let found = PROGRAMS.into_iter().find(runs);
    if found.is_none() {
        assert!(
            std::env::var_os(REQUIRE).is_none(),
            "{REQUIRE} is set, and there is none of {PROGRAMS:?}"
        );
        println!("SKIPPED: there is no Chromium here, none of {PROGRAMS:?}");
    }
    found.map(ToString::to_string)
}

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    page: Option<String>,
    next: u64,
    /// Errors and warnings that a page has told, and exceptions that it has not caught.
    pub(crate) problems: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start(program: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let pipe = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#;
        let mut child = Command::new("sh")
            .args(["-c", pipe, program])
            .args(["--headless", "--no-sandbox", "--remote-debugging-pipe"])
            .args([
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (tell, from) = channel();
        std::thread::spawn(move || listen(BufReader::new(out), &tell));
        let mut browser = Self {
            child,
            to,
            from,
            page: None,
            next: 0,
            problems: Vec::new(),
            _profile: profile,
        };
        browser.open_page();
        browser
    }

    fn open_page(&mut self) {
        let target = self.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call("Target.attachToTarget", attach);
        self.page = Some(attached["sessionId"].as_str().unwrap().to_string());
        for domain in ["Runtime", "Log", "Page"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
        self.resize(1366, 860);
    }

    /// The size of the window.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// By day or by night.
    pub(crate) fn prefers(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    pub(crate) fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
    }

    /// What an expression gives in the page.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let told = self.call("Runtime.evaluate", asked);
        let failed = &told["exceptionDetails"];
        assert!(failed.is_null(), "{expression}: {failed}");
        told["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&mut self, what: &str, expression: &str) {
        let end = Instant::now() + PATIENCE;
        while self.eval(&format!("Boolean({expression})")) != Value::Bool(true) {
            if Instant::now() > end {
                let text = self.eval("document.body.innerText");
                let (text, problems) = (text.as_str().unwrap_or_default(), &self.problems);
                panic!("{what}: not within {PATIENCE:?}; {problems:?}; the page:\n{text}");
            }
            self.rest(Duration::from_millis(50));
        }
    }

    /// Clicks in the middle of what a selector finds, as a hand does.
    pub(crate) fn click(&mut self, selector: &str) {
        self.until(selector, &format!("document.querySelector({selector:?})"));
        let middle = format!(
            "(() => {{ const node = document.querySelector({selector:?}); node.scrollIntoView({{block: 'center'}}); \
             const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        );
        let at = self.eval(&middle);
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let event =
                json!({"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Moves the pointer.
    pub(crate) fn point(&mut self, x: f64, y: f64) {
        let event = json!({"type": "mouseMoved", "x": x, "y": y});
        self.call("Input.dispatchMouseEvent", event);
    }

    /// Types into what has the focus.
    pub(crate) fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses a key, such as Tab or Enter.
    pub(crate) fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            other => panic!("which key is {other}?"),
        };
        let event = |kind: &str, text: &str| json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
        self.call("Input.dispatchKeyEvent", event("keyDown", text));
        self.call("Input.dispatchKeyEvent", event("keyUp", ""));
    }

    /// Saves what is seen, if `KRAKEN_SCREENSHOTS` names a directory.
    pub(crate) fn shoot(&mut self, name: &str) {
        let Some(dir) = std::env::var_os("KRAKEN_SCREENSHOTS") else {
            return;
        };
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let png = base64::prelude::BASE64_STANDARD.decode(shot["data"].as_str().unwrap());
        std::fs::write(
            Path::new(&dir).join(format!("console-{name}.png")),
            png.unwrap(),
        )
        .unwrap();
    }

    /// Listens for so long.
    fn rest(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match self.from.recv_timeout(left) {
                Ok(message) => self.note(&message),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("the browser ended"),
            }
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if let Some(page) = &self.page {
            message["sessionId"] = json!(page);
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(&[0]).unwrap();
        loop {
            let answer = self.from.recv_timeout(PATIENCE);
            let answer = answer.unwrap_or_else(|_| panic!("no answer to {method}"));
            if answer["id"] == json!(self.next) {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, message: &Value) {
        let told = &message["params"];
        let is_bad = |level: &Value| {
            ["error", "warning", "assert"].contains(&level.as_str().unwrap_or_default())
        };
        let is_problem = match message["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => is_bad(&told["type"]),
            "Log.entryAdded" => is_bad(&told["entry"]["level"]),
            _ => false,
        };
        if is_problem {
            self.problems.push(told.to_string());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(mut from: impl std::io::BufRead, tell: &Sender<Value>) {
    let mut message = Vec::new();
    while from.read_until(0, &mut message).is_ok_and(|read| read > 0) {
        message.pop();
        let Ok(value) = serde_json::from_slice(&message) else {
            return;
        };
        if tell.send(value).is_err() {
            return;
        }
        message.clear();
    }
}
