#!/usr/bin/env bash
# Makes the environment folder $1 hold exactly requirements.lock. Does nothing when it already does.
set -euo pipefail
cd "$(dirname "$0")/.."
env=$1
needed_gb=13

say() { printf '%s\n' "$*" >&2; }
stop() { say "[FAIL] $1"; say "       怎么办：$2"; exit 1; }

# Notebooks and everything they launch import `helpers` from here, whatever folder they run in.
importable() { pwd >"$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/course.pth"; }

if [ "$env" != .venv ]; then
    "$env/bin/python" -m helpers.machine.environment ||
        stop "conda 环境 $env 和 requirements.lock 不一致。" "PIP_NO_DEPS=1 conda env update -f environment.yml --prune"
    importable
    exit 0
fi

stamp=.venv/installed.lock
if cmp -s requirements.lock "$stamp"; then exit 0; fi

python=${PYTHON:-python3.11}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
    stop "需要 Python 3.11，这里的 $python $("$python" -c 'import platform; print("是", platform.python_version())' 2>/dev/null || echo 无法运行)。" \
        "安装 python3.11（Debian/Ubuntu：apt install python3.11 python3.11-venv；InternStudio：conda create -n py311 python=3.11），再运行：PYTHON=/路径/python3.11 make ..."

free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gb" -ge "$needed_gb" ] ||
    stop "安装需要 $needed_gb GB 空闲磁盘，这里只有 $free_gb GB。" "删掉不用的文件，或者把课程放到更大的磁盘上，再运行一次。"

# A half-made environment cannot be told from a broken one: start again. What was downloaded is in pip's cache.
if [ -e .venv ]; then say "环境不完整，或者版本锁已更新：重新安装。"; rm -rf .venv; fi
say "正在安装课程环境（只有第一次需要，要下载约 3 GB，几分钟）……"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$python" -m venv .venv 2>"$log" >&2 ||
    stop "不能建立虚拟环境：$(tail -n 1 "$log")" "安装 venv 模块（Debian/Ubuntu：apt install python3.11-venv），再运行一次。"
if ! .venv/bin/python -m pip install --disable-pip-version-check --no-deps --quiet -r requirements.lock >"$log" 2>&1; then
    rm -rf .venv
    if grep -q 'No space left' "$log"; then
        stop "磁盘在安装时满了。" "腾出 $needed_gb GB（临时文件夹和 pip 缓存也要空间），再运行一次。"
    elif grep -qE 'No matching distribution|ConnectionError|Timeout|name resolution|unreachable|ProxyError|SSLError' "$log"; then
        package=$(sed -n 's/.*No matching distribution found for \([^ ]*\).*/\1/p' "$log" | head -n 1)
        stop "从 Python 软件源下载不到 ${package:-需要的包}：网络不通，或者镜像里没有它。" \
            "检查网络；在国内可以换镜像：pip config set global.index-url https://mirrors.aliyun.com/pypi/simple ，再运行一次。"
    fi
    tail -n 5 "$log" >&2
    stop "安装没有完成，原因见上面几行。" "再运行一次；如果还是这样，把上面几行贴到课程的 issue 里。"
fi
importable
cp requirements.lock "$stamp"
