"""The function as a component: what the runtime of a sandbox does around the same handler."""

import json

import wit_world
from app import handler


class WitWorld(wit_world.WitWorld):
    def call(self, event):
        return json.dumps(handler(json.loads(event), None))

    def nothing(self):
        pass
