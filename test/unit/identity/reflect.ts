/** The three functions of the reflect-metadata proposal that @peculiar/x509's container asks for at import. */
const metadata = new WeakMap<object, Map<unknown, unknown>>();

Object.assign(Reflect, {
	defineMetadata: (key: unknown, value: unknown, target: object) => {
		if (!metadata.has(target)) metadata.set(target, new Map());
		metadata.get(target)!.set(key, value);
	},
	getOwnMetadata: (key: unknown, target: object) => metadata.get(target)?.get(key),
	getMetadata: (key: unknown, target: object) => metadata.get(target)?.get(key),
});
