// Answers its event.
exports.handler = async (event) => event;
