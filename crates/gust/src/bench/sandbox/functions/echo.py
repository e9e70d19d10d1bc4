"""Answers its event."""


def handler(event, context):
    return event
