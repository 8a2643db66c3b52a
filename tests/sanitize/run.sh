#!/usr/bin/env bash
# Builds fastseq._C with a sanitizer, apart from the installed one, and runs the tests of the C++ code on it.
#
#   tests/sanitize/run.sh address [ISA ...]   memory errors and undefined behaviour, by default on every instruction set
#   tests/sanitize/run.sh thread              data races between the threads of every kernel
#
# PYTHON names the interpreter, FASTSEQ_FUZZ_EXAMPLES how many bad calls of each kind are tried.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath -s "$(command -v "${PYTHON:-python3}")")  # as it is, a link of an environment, from any folder
kind=${1:?address or thread}
shift
case $kind in
  address) sanitizers=address,undefined libraries="libasan.so libubsan.so" ;;
  thread) sanitizers=thread libraries=libtsan.so ;;
  *) echo "unknown sanitizer '$kind': address or thread" >&2; exit 1 ;;
esac

# A copy of the package and its tests around the sanitized extension: the installed one stays as it is.
tree=$PWD/build/sanitize/$kind
mkdir -p "$tree"
FASTSEQ_SANITIZE=$sanitizers "$python" setup.py -q build_ext --build-lib "$tree/lib" >&2
rm -rf "$tree/fastseq" "$tree/kernels" "$tree/tests"
cp -r fastseq kernels tests pyproject.toml "$tree"
rm -f "$tree"/fastseq/*.so
cp "$tree"/lib/fastseq/_C*.so "$tree/fastseq"
cd "$tree"

# The runtimes come before Python, which was built without them; libstdc++ too, whose __cxa_throw they wrap.
preload=
for library in $libraries libstdc++.so; do preload+=" $("${CXX:-g++}" -print-file-name=$library)"; done
export FASTSEQ_STRICT=1 PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:history_size=4

checked() {  # arguments of pytest, which must not keep a report on descriptor 2 to itself
  # Without randomised addresses, which some kernels make too random for ThreadSanitizer.
  setarch "$(uname -m)" -R env LD_PRELOAD="$preload" "$python" -X faulthandler -m pytest -q -p no:cacheprovider --capture=sys "$@"
}

export FASTSEQ_FUZZ_EXAMPLES=${FASTSEQ_FUZZ_EXAMPLES:-30}
if [ "$kind" = thread ]; then
  checked tests/bindings -k "threads or valid"
else
  [ $# -gt 0 ] || set -- avx512 avx2 baseline
  tests="tests/bindings tests/ops tests/data"
  # Without those that say little about C++ and take long (compilers, processes of their own), and the one that measures
  # memory, of which the sanitizer takes its own part.
  names="not compile and not opcheck and not triton and not instruction_set and not memory_is_bounded"
  for isa in "$@"; do
    echo "== $isa"
    FASTSEQ_CPU_ISA=$isa checked $tests -k "$names"
    tests=tests/bindings  # every kernel, on shapes of all sizes
  done
fi
