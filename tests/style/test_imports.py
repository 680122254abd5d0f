"""`import userfault` costs little and changes nothing."""


def test_import_loads_no_heavy_module(child):
    """NumPy, click, rich and the rarely used parts are loaded by those who use them."""
    code = """
        import sys
        import userfault
        heavy = {"numpy", "click", "rich", "matplotlib", "asyncio", "multiprocessing", "importlib.metadata"}
        heavy |= {f"userfault.{part}" for part in ("pager", "migration", "report", "cli", "testing")}
        print(sorted(heavy & set(sys.modules)))
        """
    assert child(code).check().stdout == "[]\n"


def test_import_starts_nothing(child):
    """No thread, no descriptor, no changed signal handler comes from importing."""
    code = """
        import os, signal
        before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        handlers = [signal.getsignal(number) for number in (signal.SIGBUS, signal.SIGINT, signal.SIGSEGV)]
        caught = [line for line in open("/proc/self/status") if line.startswith("SigCgt")]
        import userfault
        assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before
        assert [signal.getsignal(number) for number in (signal.SIGBUS, signal.SIGINT, signal.SIGSEGV)] == handlers
        assert [line for line in open("/proc/self/status") if line.startswith("SigCgt")] == caught
        """
    child(code, warnings=None).check()
