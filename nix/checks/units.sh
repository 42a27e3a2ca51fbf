# check FOLDER: has systemd look at the units, whose exit status says nothing of unknown keys, and counts
# their walls: 12 is 1.2 of systemd's scale, on which lower is safer. Podman's unit has none of its own.
check() {
  cd "$1" || exit 1
  said=$(systemd-analyze verify --man=no --recursive-errors=no ./*.service ./*.socket ./*.target 2>&1 || true)
  [ -z "$said" ] || { echo "$said"; exit 1; }
  for unit in etcd nats router frontend worker@ engine@; do
    case $unit in
      worker@ | engine@) most=18 ;;
      etcd | nats) most=15 ;;
      *) most=12 ;;
    esac
    systemd-analyze security --offline=true --threshold=$most --no-pager "./kvlens-$unit.service" >/dev/null ||
      { echo "kvlens-$unit.service is above $most"; exit 1; }
  done
}
