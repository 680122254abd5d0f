//! The numbers of `abi.rs` against those of the C headers, where there are any.

use std::collections::HashMap;
use std::process::Command;
use uffd::abi::*;

const PROBE: &str = r#"
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <linux/fs.h>
#define NUMBER(name) printf(#name " %llu\n", (unsigned long long)(name))
#define SIZE(type) printf("size_" #type " %llu\n", (unsigned long long)sizeof(struct type))
#define OFFSET(type, field) printf(#type "." #field " %llu\n", (unsigned long long)offsetof(struct type, field))
int main(void) {
    NUMBER(__NR_userfaultfd);
    NUMBER(UFFDIO_API); NUMBER(UFFDIO_REGISTER); NUMBER(UFFDIO_UNREGISTER); NUMBER(UFFDIO_WAKE);
    NUMBER(UFFDIO_COPY); NUMBER(UFFDIO_ZEROPAGE); NUMBER(UFFDIO_WRITEPROTECT);
    SIZE(uffd_msg); SIZE(uffdio_api); SIZE(uffdio_register); SIZE(uffdio_range); SIZE(uffdio_copy);
    SIZE(uffdio_zeropage); SIZE(uffdio_writeprotect);
    OFFSET(uffd_msg, arg.pagefault.flags); OFFSET(uffd_msg, arg.pagefault.address);
    OFFSET(uffd_msg, arg.pagefault.feat.ptid); OFFSET(uffd_msg, arg.fork.ufd);
    OFFSET(uffdio_copy, copy); OFFSET(uffdio_zeropage, zeropage);
#ifdef UFFDIO_CONTINUE
    NUMBER(UFFDIO_CONTINUE); SIZE(uffdio_continue);
#endif
#ifdef USERFAULTFD_IOC_NEW
    NUMBER(USERFAULTFD_IOC_NEW);
#endif
#ifdef UFFDIO_POISON
    NUMBER(UFFDIO_POISON); SIZE(uffdio_poison);
#endif
#ifdef UFFDIO_MOVE
    NUMBER(UFFDIO_MOVE); SIZE(uffdio_move);
#endif
#ifdef UFFDIO_RWPROTECT
    NUMBER(UFFDIO_RWPROTECT); NUMBER(UFFDIO_SET_MODE);
#endif
#ifdef PAGEMAP_SCAN
    NUMBER(PAGEMAP_SCAN); SIZE(pm_scan_arg); SIZE(page_region);
#endif
    return 0;
}
"#;

/// What we believe, by the names the probe prints.
fn ours() -> HashMap<&'static str, u64> {
    let size = |name, bytes: usize| (name, bytes as u64);
    HashMap::from([
        ("__NR_userfaultfd", libc::SYS_userfaultfd as u64),
        ("UFFDIO_API", UFFDIO_API.into()),
        ("UFFDIO_REGISTER", UFFDIO_REGISTER.into()),
        ("UFFDIO_UNREGISTER", UFFDIO_UNREGISTER.into()),
        ("UFFDIO_WAKE", UFFDIO_WAKE.into()),
        ("UFFDIO_COPY", UFFDIO_COPY.into()),
        ("UFFDIO_ZEROPAGE", UFFDIO_ZEROPAGE.into()),
        ("UFFDIO_WRITEPROTECT", UFFDIO_WRITEPROTECT.into()),
        ("UFFDIO_CONTINUE", UFFDIO_CONTINUE.into()),
        ("UFFDIO_POISON", UFFDIO_POISON.into()),
        ("UFFDIO_MOVE", UFFDIO_MOVE.into()),
        ("UFFDIO_RWPROTECT", UFFDIO_RWPROTECT.into()),
        ("UFFDIO_SET_MODE", UFFDIO_SET_MODE.into()),
        ("USERFAULTFD_IOC_NEW", USERFAULTFD_IOC_NEW.into()),
        ("PAGEMAP_SCAN", PAGEMAP_SCAN.into()),
        size("size_uffd_msg", size_of::<UffdMsg>()),
        size("size_uffdio_api", size_of::<UffdioApi>()),
        size("size_uffdio_register", size_of::<UffdioRegister>()),
        size("size_uffdio_range", size_of::<UffdioRange>()),
        size("size_uffdio_copy", size_of::<UffdioCopy>()),
        size("size_uffdio_zeropage", size_of::<UffdioZeropage>()),
        size("size_uffdio_writeprotect", size_of::<UffdioWriteprotect>()),
        size("size_uffdio_continue", size_of::<UffdioContinue>()),
        size("size_uffdio_poison", size_of::<UffdioPoison>()),
        size("size_uffdio_move", size_of::<UffdioMove>()),
        size("size_pm_scan_arg", size_of::<PmScanArg>()),
        size("size_page_region", size_of::<PageRegion>()),
        ("uffd_msg.arg.fork.ufd", 8),
        ("uffd_msg.arg.pagefault.flags", 8),
        ("uffd_msg.arg.pagefault.address", 16),
        ("uffd_msg.arg.pagefault.feat.ptid", 24),
        ("uffdio_copy.copy", 32),
        ("uffdio_zeropage.zeropage", 24),
    ])
}

#[test]
fn numbers_agree_with_the_headers() {
    if !std::path::Path::new("/usr/include/linux/userfaultfd.h").exists() {
        eprintln!("skipped: no linux/userfaultfd.h");
        return;
    }
    let folder = std::env::temp_dir().join(format!("uffd-abi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (source, program) = (folder.join("probe.c"), folder.join("probe"));
    std::fs::write(&source, PROBE).unwrap();
    let Ok(compiled) = Command::new("cc").arg(&source).arg("-o").arg(&program).output() else {
        eprintln!("skipped: no C compiler");
        return;
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&program).output().unwrap().stdout;
    std::fs::remove_dir_all(&folder).unwrap();
    let (ours, mut compared) = (ours(), 0);
    for line in String::from_utf8(printed).unwrap().lines() {
        let (name, value) = line.split_once(' ').unwrap();
        assert_eq!(ours.get(name).copied(), value.parse().ok(), "{name}");
        compared += 1;
    }
    assert!(compared >= 20, "only {compared} numbers compared");
}
