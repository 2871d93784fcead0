# Real programs over a tree of inputs; what they say and make is compared with what they do over files.
set -eu
export HOME=$PWD/home LC_ALL=C TZ=UTC GIT_CONFIG_NOSYSTEM=1 PYTHONDONTWRITEBYTECODE=1
mkdir -p home
echo "== find"; find in -printf '%y %m %s %p\n' | grep -v '^d' | sort
echo "== tar"; tar -C in --sort=name -cf t.tar . ; mkdir copy; tar -C copy -xf t.tar; diff -r in copy && echo same
echo "== cp"; cp -a in again; diff -r in again && echo same
echo "== make"; make -s -C in/project CC="${CC:-cc}"; in/project/hello; make -s -C in/project; touch in/project/hello.h; make -C in/project | grep -c hello.c
if command -v git >/dev/null; then
  echo "== git"; cd in; git init -q . ; git config user.email a@b; git config user.name a
  git add -A . >/dev/null 2>&1; git commit -q -m first; git status --short | wc -l; echo more >> project/hello.c 2>/dev/null || { chmod u+w project/hello.c; echo '/* more */' >> project/hello.c; }
  git status --short; git ls-files | sort; git stash -q; git status --short | wc -l; git mv project/hello.h project/moved.h; git status --short | sort; git fsck 2>&1 | wc -l; cd ..
fi
echo "== python"; unset PYTHONDONTWRITEBYTECODE; python3 -m compileall -q in/package; ls in/package/__pycache__ | wc -l; python3 -c 'import sys; sys.path.insert(0, "in"); import package.module; print(package.module.answer())'
echo "== sed"; chmod u+w in/text; sed -i s/old/new/ in/text; cat in/text
echo "== rm"; rm -rf in; test ! -e in && echo gone
