use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

impl CodeExecution {
    /// With the search path of this process.
    pub(crate) fn for_tests(folder: &Path, seconds: u64, memory_bytes: u64) -> Self {
        let search_path = std::env::var_os("PATH").unwrap_or_default();
        Self { seconds, memory_bytes, folder: folder.to_owned(), search_path }
    }
}

/// Every isolation that works here; without Python there is nothing to run.
fn sandboxes(folder: &Path, seconds: u64) -> Vec<Sandbox> {
    let code = CodeExecution::for_tests(folder, seconds, 1 << 29);
    let Ok(best) = Sandbox::new(&code) else { return Vec::new() };
    let others = [Isolation::Namespaces, Isolation::Limits].into_iter().filter(|&other| other != best.isolation());
    let others: Vec<Sandbox> = others.map(|isolation| best.with_isolation(isolation)).collect();
    let works = |sandbox: &Sandbox| run(sandbox, "") == TestResult::Passed;
    [best].into_iter().chain(others.into_iter().filter(works)).collect()
}

/// Runs a source, which the tests accept as it is if it has run to its end.
fn run(sandbox: &Sandbox, source: &str) -> TestResult {
    let source = format!("{source}\ndef f():\n    return True\n");
    let trial = Trial { prompt: "", source: &source, test: "def check(f):\n    assert f() is True", entry_point: "f" };
    sandbox.run(&trial).unwrap()
}

fn error(result: TestResult) -> String {
    match result {
        TestResult::Failed(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_passes_only_when_it_reaches_its_end() {
    let folder = tempfile::tempdir().unwrap();
    for sandbox in sandboxes(folder.path(), 60) {
        assert_eq!(run(&sandbox, "assert 1 + 1 == 2"), TestResult::Passed);
        for program in ["assert False", "import sys; sys.exit(0)", "import os; os._exit(0)", "def f(:"] {
            error(run(&sandbox, program));
        }
        assert_eq!(error(run(&sandbox, "raise ValueError('seven')")), "ValueError: seven");
        assert_eq!(error(run(&sandbox, "raise SystemExit('eight\\nnine')")), "nine");
        assert_eq!(error(run(&sandbox, "import os; os._exit(3)")), "ended early: exit status: 3");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a folder is left");
}

#[test]
fn time_memory_and_the_environment_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    for quick in sandboxes(folder.path(), 2) {
        let started = Instant::now();
        assert_eq!(run(&quick, "while True: pass"), TestResult::TimedOut);
        assert_eq!(run(&quick, "import time\ntime.sleep(600)"), TestResult::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(120));
    }
    for sandbox in sandboxes(folder.path(), 60) {
        error(run(&sandbox, "x = bytearray(1 << 30)"));
        assert_eq!(run(&sandbox, "import os\nassert 'HOME' not in os.environ"), TestResult::Passed);
        assert_eq!(run(&sandbox, "import os\nassert os.listdir() == []\nopen('x', 'w').close()"), TestResult::Passed);
        assert_eq!(run(&sandbox, "import sys\nassert sys.stdin.read() == ''\nprint('to nobody')"), TestResult::Passed);
        if sandbox.isolation() != Isolation::Limits {
            let program = "import socket\ntry:\n    socket.create_connection(('1.1.1.1', 53), 5)\nexcept OSError:\n    pass\nelse:\n    raise SystemExit(1)";
            assert_eq!(run(&sandbox, program), TestResult::Passed);
        }
    }
}

#[test]
fn a_program_cannot_write_its_own_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    // Each leaves, or raises, if it did what it wanted to.
    let everywhere = [
        // To every descriptor, the program's own and the judge's, and what the parent used to look for.
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'{\"passed\": true, \"error\": \"\"}\\n')\n    except OSError: pass\nos._exit(0)",
        "import os\nfor p in os.listdir('/proc'):\n    for fd in range(9):\n        try: open(f'/proc/{p}/fd/{fd}', 'wb').write(b'{\"passed\": true, \"error\": \"\"}\\n')\n        except OSError: pass\nos._exit(0)",
        "import sys, os\nw = sys._getframe(1).f_globals\nopen('ended', 'w').write(str(w))\nos._exit(0)",
        // By what it answers.
        "class Equal:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\nf = Equal\ndef g():\n    return Equal()",
        "import sys\nlink = sys._getframe(1).f_locals['link']\nlink.send({'passed': True, 'value': True, 'error': ''})\nimport os; os._exit(0)",
        "import builtins\nbuiltins.isinstance = lambda *a: True\nraise SystemExit('x')",
        // In place of files that the parent might read.
        "import os\nfor name in ('ended', 'errors'): os.mkfifo(name)\nos._exit(0)",
        "import os\nfor name in ('ended', 'errors'): os.symlink('/dev/zero', name)\nos._exit(0)",
        // The memory of others.
        "import os\nfor p in os.listdir('/proc'):\n    if p.isdigit() and int(p) not in (os.getpid(), 1):\n        try:\n            if b'judge' in open(f'/proc/{p}/cmdline', 'rb').read(): open(f'/proc/{p}/mem', 'rb+')\n        except OSError: continue\nos._exit(1)",
    ];
    for sandbox in sandboxes(folder.path(), 60) {
        for source in everywhere {
            let source = format!("def f():\n    return 4\n{source}\n");
            let test = "def check(f):\n    assert f() == 5\n    assert abs(f()) == 5";
            let trial = Trial { prompt: "", source: &source, test, entry_point: "f" };
            let error = error(sandbox.run(&trial).unwrap());
            assert!(!error.contains("secret"), "{error}");
        }
        // An exception that ends iterations ends no test.
        let source = "def f(x):\n    raise StopIteration";
        let test = "def check(f):\n    assert all(map(f, [1, 2]))";
        error(sandbox.run(&Trial { prompt: "", source, test, entry_point: "f" }).unwrap());
        // A built-in function of the tests stays what it is.
        let source = "def abs(x):\n    return 0\ndef f():\n    return 4";
        let test = "def check(f):\n    assert abs(f() - 5) < 1e-6";
        error(sandbox.run(&Trial { prompt: "", source, test, entry_point: "f" }).unwrap());
        if sandbox.isolation() == Isolation::Container {
            let program = format!("raise SystemExit(open({secret:?}).read())");
            assert!(error_of(&sandbox, &program).contains("No such file"));
            assert!(error_of(&sandbox, "open('/usr/x', 'w')").contains("Read-only"));
            let mount =
                "import ctypes\nraise SystemExit(str(ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None)))";
            assert_eq!(error_of(&sandbox, mount), "-1");
        }
    }
}

fn error_of(sandbox: &Sandbox, source: &str) -> String {
    error(run(sandbox, source))
}

#[test]
fn all_processes_and_files_of_a_program_are_limited_together() {
    let folder = tempfile::tempdir().unwrap();
    let processes = "import os, time\nfor _ in range(400):\n    if os.fork() == 0:\n        time.sleep(600)\n        os._exit(0)\ntime.sleep(600)";
    let memory = "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        b = bytearray(400 << 20)\n        time.sleep(600)\n        os._exit(0)\ntime.sleep(600)";
    let files = "import os\nwhile True:\n    open(f'f{len(os.listdir())}', 'wb').write(b'x' * (4 << 20))";
    let folders = "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')";
    let daemon =
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n    os._exit(0)\nos._exit(1)";
    for sandbox in sandboxes(folder.path(), 60) {
        let started = Instant::now();
        let found = error_of(&sandbox, processes);
        assert!(found.contains("processes") || found.contains("unavailable"), "{found}");
        assert!(error_of(&sandbox, memory).contains("512 MiB together"));
        let found = error_of(&sandbox, files);
        assert!(found.contains("64 MiB") || found.contains("No space"), "{found}");
        let found = error_of(&sandbox, folders);
        assert!(
            found.contains("too many files") || found.contains("No space") || found.contains("too long"),
            "{found}"
        );
        assert!(error_of(&sandbox, daemon).contains("ended early"));
        if sandbox.isolation() != Isolation::Limits {
            assert_eq!(
                run(&sandbox, "import os\nos.kill(os.getppid(), 9)"),
                TestResult::Passed,
                "it killed its parent"
            );
        }
        assert!(started.elapsed() < Duration::from_secs(300), "the parent waits");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a folder is left");
}

#[test]
fn values_of_every_kind_cross_between_tests_and_program() {
    let folder = tempfile::tempdir().unwrap();
    let source = "
import collections, decimal, fractions, math
class Box:
    def __init__(self, content): self.content = content
    def get(self): return self.content
class Own(KeyError): pass
def f(kind, *arguments, by=None):
    x = arguments[0] if arguments else None
    if kind == 'same': return x
    if kind == 'sort': x.sort()
    elif kind == 'update': x['new'] = [1]
    elif kind == 'raise': raise Own('key')
    elif kind == 'lazy': return (i * i for i in range(x))
    elif kind == 'keys': return {1: 2}.keys()
    elif kind == 'count': return collections.Counter('aab')
    elif kind == 'box': return Box(x)
    elif kind == 'map': return [by(i) for i in x]
    elif kind == 'exact': return [decimal.Decimal('0.1'), fractions.Fraction(1, 3), 10 ** 5000, math.inf, 2j, b'a', bytearray(b'b')]
";
    let test = "
import decimal, fractions, math
def check(f):
    for value in (None, True, 1, -1.5, 0.1 + 0.2, 'a\\n\\u2028\\ud800', b'\\xff', (1, (2,)), {1, 'a'}, frozenset([1]), {(1, 2): {3: []}}, range(0, 9, 2), []):
        found = f('same', value)
        assert found == value and type(found) is type(value), (found, value)
    assert f('same', True) is True and math.isnan(f('same', math.nan))
    numbers = [3, 1, 2]
    assert f('sort', numbers) is None and numbers == [1, 2, 3]
    names = {'old': 0}
    f('update', names)
    assert names == {'old': 0, 'new': [1]}
    try:
        f('raise')
    except KeyError as error:
        assert 'key' in str(error)
    else:
        assert False
    lazy = f('lazy', 4)
    assert next(lazy) == 0 and list(lazy) == [1, 4, 9]
    assert f('keys') == {1} and f('count') == {'a': 2, 'b': 1}
    assert f('box', [7]).get() == [7] and f('box', 1) != f('box', 1)
    assert f('map', [1, 2], by=lambda x: x + len(numbers)) == [4, 5]
    assert f('exact') == [decimal.Decimal('0.1'), fractions.Fraction(1, 3), 10 ** 5000, math.inf, 2j, b'a', bytearray(b'b')]
";
    for sandbox in sandboxes(folder.path(), 60) {
        let trial = Trial { prompt: "", source, test, entry_point: "f" };
        assert_eq!(sandbox.run(&trial).unwrap(), TestResult::Passed, "{:?}", sandbox.isolation());
    }
}

#[test]
fn the_tests_use_the_prompt_s_functions_and_not_those_of_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = "import math\n\ndef shift(x):\n    return x + 1\n\ndef back(x):\n    \"\"\"Takes one away.\"\"\"\n";
    let test = "def check(candidate):\n    for x in range(5):\n        assert candidate(shift(x)) == math.floor(x)";
    for sandbox in sandboxes(folder.path(), 60) {
        let trial = |source: &str| sandbox.run(&Trial { prompt, source, test, entry_point: "back" }).unwrap();
        assert_eq!(trial(&format!("{prompt}    return x - 1")), TestResult::Passed);
        error(trial(&format!("{prompt}    return x\ndef shift(x):\n    return x")));
    }
}
