#!/usr/bin/env bash
# Installs the Debian packages that some tests need, and says what became of each. One that cannot be installed is no
# failure: the tests that need it are skipped, and say so.
set -u
export DEBIAN_FRONTEND=noninteractive

# Whether a package is there, or another program that does the same.
there() {
    case $1 in
        bubblewrap) command -v bwrap ;;
        chromium) command -v chromium || command -v chromium-browser || command -v google-chrome ;;
        *) dpkg -s "$1" ;;
    esac &>/dev/null
}

for package in bubblewrap chromium fonts-wqy-microhei; do # the last has the Chinese letters for the browser
    if there $package; then
        echo "$package: is there"
    elif [ "$(id -u)" != 0 ]; then
        echo "$package: not installed, only root may do that: sudo $0"
    elif ! command -v apt-get >/dev/null; then
        echo "$package: not installed, this system has no apt-get"
    else
        [ -n "${updated:-}" ] || apt-get update &>/dev/null
        updated=yes
        if said=$(apt-get install -qq --no-install-recommends $package 2>&1); then
            echo "$package: installed"
        else
            echo "$package: not installed, apt-get says: ${said##*$'\n'}"
        fi
    fi
done
