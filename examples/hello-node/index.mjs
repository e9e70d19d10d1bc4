// Greets whoever the event names. Made before the snapshot, so every instance has it.
const started = new Date().toISOString();

export const handler = async (event, context) => {
  const name = event.name ?? "world";
  console.log(`saying hello to ${name}`);
  if (name === "nobody") throw new RangeError("nobody is here");
  return { message: `hello, ${name}`, request_id: context.awsRequestId, started };
};
