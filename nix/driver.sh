# Finds the libraries of NVIDIA's driver, which are the host's and in no closure, and has programs find them
# by themselves: a folder with links to these alone, because all of /usr/lib would bring another libc.
driver_folders() {
  echo /run/opengl-driver/lib
  # What the host's own loader knows.
  for ldconfig in /sbin/ldconfig /usr/sbin/ldconfig; do
    [ ! -x "$ldconfig" ] || "$ldconfig" -p | sed -n 's|.* => \(/.*\)/libcuda\.so\.1$|\1|p'
  done
  echo /usr/lib/wsl/lib
  for folder in /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64 /usr/lib; do echo "$folder"; done
}

link_driver() {
  links=${XDG_CACHE_HOME:-$HOME/.cache}/kvlens/driver
  for folder in $(driver_folders); do
    [ -e "$folder/libcuda.so.1" ] || continue
    rm -rf "$links"
    mkdir -p "$links"
    for library in "$folder"/libcuda.so* "$folder"/libnvidia-ml.so* "$folder"/libnvidia-ptxjitcompiler.so* \
      "$folder"/libnvidia-nvvm*.so* "$folder"/libnvidia-gpucomp.so*; do
      [ ! -e "$library" ] || ln -s "$library" "$links/"
    done
    export LD_LIBRARY_PATH="$links${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export TRITON_LIBCUDA_PATH="$links"
    return
  done
}

link_driver
