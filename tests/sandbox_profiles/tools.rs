//! Tools that builds are made of do their work below the filters.

use std::process::Command;

use crate::bed::{NONE, filtered};

/// A tool that must be there for the row to run, and what is done with it in an empty directory.
const WORK: &[(&str, &str)] = &[
    ("sh", "echo a > a && mkdir -p d/e && ln -s ../a d/l && mv a b && cp -a b d/c && mkfifo f && test \"$(cat d/c)\" = a"),
    ("tar", "mkdir x && echo 1 > x/1 && ln x/1 x/2 && tar czf x.tgz x && rm -r x && tar xpf x.tgz && cmp x/1 x/2"),
    (
        "gcc",
        "printf '#include <stdio.h>\\nint main(void){puts(\"hi\");return 0;}' > a.c && gcc -O2 -pipe -flto a.c -o a && \
         test \"$(./a)\" = hi",
    ),
    (
        "g++",
        "printf '#include <thread>\\nint main(){std::thread([]{}).join();}' > a.cc && \
         echo '#include <vector>' > p.h && g++ -x c++-header p.h && g++ -include p.h -g -pthread a.cc -o a && ./a",
    ),
    ("rustc", "echo 'fn main(){std::thread::spawn(||()).join().unwrap();}' > a.rs && rustc -Copt-level=2 a.rs && ./a"),
    (
        "make",
        "printf 'all: 1 2 3\\n%%:\\n\\t@sleep 0; echo $@ > $@\\n' > Makefile && make -j3 && test -s 3",
    ),
    (
        "python3",
        "python3 -c \"
import multiprocessing, socket, subprocess, sqlite3, tempfile, threading, pty, os
with multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]
server = socket.create_server(('127.0.0.1', 0)); socket.create_connection(server.getsockname()).close()
socket.getaddrinfo('127.0.0.1', 80); socket.if_nameindex()
assert subprocess.run(['true']).returncode == 0
sqlite3.connect('db').execute('create table t (a)')
assert pty.spawn(['true']) == 0
\"",
    ),
    (
        "git",
        "export HOME=$PWD GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b && \
         git init -q r && cd r && echo 1 > 1 && git add 1 && git commit -qm 1 && git gc -q && cd .. && \
         git clone -q r s && test -f s/1",
    ),
    (
        "javac",
        "echo 'class A{public static void main(String[] a)throws Exception{var t=new Thread(()->{});t.start();t.join();}}' \
         > A.java && javac A.java && java -cp . A",
    ),
    ("go", "export GOCACHE=$PWD/c GO111MODULE=off && printf 'package main\\nfunc main(){}' > a.go && go build -o a a.go && ./a"),
    ("cmake", "printf 'cmake_minimum_required(VERSION 3.10)\\nproject(a C)\\n' > CMakeLists.txt && cmake -S . -B b"),
    ("perl", "perl -e 'my $p = fork; exit 3 unless $p; waitpid $p, 0; exit(($? >> 8) != 3)'"),
    ("node", "node -e 'new (require(\"worker_threads\").Worker)(\"1\", {eval: true}).on(\"exit\", process.exit)'"),
    ("setarch", "setarch -R true && setarch x86_64 true"),
    ("nice", "nice -n 5 true"),
    ("timeout", "timeout 5 true"),
    ("fakeroot", "fakeroot sh -c 'touch x && chown 0:0 x'"),
];

fn is_there(tool: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {tool} > /dev/null")])
        .status();
    found.expect("sh").success()
}

fn work(profile: &str, script: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let output = filtered(profile, "sh", || Ok(()))
        .args(["-e", "-c", script])
        .current_dir(directory.path())
        .output()
        .expect("sh runs");
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

fn work_below(profile: &str) {
    for &(tool, script) in WORK {
        if !is_there(tool) {
            crate::skipped::here(format!("there is no {tool}"));
            continue;
        }
        if let Err(below) = work(profile, script) {
            match work(NONE, script) {
                Ok(()) => panic!("{tool} below {profile}: {below}"),
                Err(_) => crate::skipped::here(format!(
                    "{tool} does not do this without a filter either: {below}"
                )),
            }
        }
    }
}

#[test]
fn tools_work_below_the_default_profile() {
    work_below("default");
}

#[test]
fn tools_work_below_the_strict_profile() {
    work_below("strict");
}
