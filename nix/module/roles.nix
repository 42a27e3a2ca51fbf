# The roles of units that can be given credentials, each of which has a folder of its own for them.
[
  "etcd"
  "nats"
  "router"
  "frontend"
  "engine"
  "worker"
]
