# Fetches a model into its folder, unless it is there; what is not as its hash says is refused.
#   fetch.sh NAME REPOSITORY REVISION HASH FOLDER
set -eu
name=$1 repository=$2 revision=$3 hash=$4 folder=$5
[ ! -d "$folder" ] || exit 0
# A download that was cut off goes on where it ended.
hf download "$repository" --revision "$revision" --local-dir "$folder.part" >&2
# Its own notes are no part of the model.
rm -rf "$folder.part/.cache"
found=$(nix --extra-experimental-features nix-command hash path "$folder.part")
if [ "$found" != "$hash" ]; then
  rm -rf "$folder.part"
  echo "services.kvlens.models.$name.hash is $hash, and revision $revision of $repository is $found" >&2
  exit 78
fi
mv "$folder.part" "$folder"
