#!/usr/bin/env bash
# Install what the tests marked `system` use, from Debian's packages. Elsewhere, or without root, say what is missing.
set -euo pipefail

declare -A PACKAGES=( # program: package that brings it
  [chromium]=chromium
  [ip]=iproute2
  [sshd]=openssh-server
  [ssh]=openssh-client
  [slurmctld]=slurmctld
  [slurmd]=slurmd
  [sbatch]=slurm-client
  [munged]=munge
  [pdflatex]=texlive-latex-base
)
LATEX=texlive-latex-recommended # holds booktabs.sty
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin DEBIAN_FRONTEND=noninteractive

missing=()
for program in "${!PACKAGES[@]}"; do
  command -v "$program" > /dev/null || missing+=("${PACKAGES[$program]}")
done
kpsewhich booktabs.sty > /dev/null 2>&1 || missing+=("$LATEX")
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
elif ! command -v apt-get > /dev/null; then
  echo "error: this is no Debian; install by hand what brings these packages: ${missing[*]}" >&2
elif [ "$(id -u)" -ne 0 ]; then
  echo "error: installing packages needs root: sudo apt-get install ${missing[*]}" >&2
else
  apt-get update --quiet --quiet
  apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}"
  exit 0
fi
exit 1
