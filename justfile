# Habits of this project, for just (https://just.systems; `pip install rust-just` brings it).

export PATH := justfile_directory() / ".tools/bin" + ":" + env("PATH")
export MUSTER_SIM_SECONDS := env("MUSTER_SIM_SECONDS", "5")

# what there is
default:
    @just --list

# format, lints and unit tests: under two minutes on a warm tree
quick:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo nextest run --workspace --locked --lib --bins --test tidy

# everything that a commit must pass; `just full --all` also what is too long for that
full *ARGUMENTS:
    deploy/test.sh {{ ARGUMENTS }}

# the kernel alone, then a whole sort beside sort(1)
bench *ARGUMENTS:
    cargo bench -p muster-kernel
    deploy/bench.sh {{ ARGUMENTS }}

# the simulation, for so many fresh seeds
sim SEEDS="1000" FROM=`date +%s`:
    cargo build --workspace --bin sim --locked
    target/debug/sim run --from {{ FROM }} --seeds {{ SEEDS }}
