import {extname} from 'node:path';
import type {ProxyConfig} from '../config/types.ts';
import {AdminClient} from './admin.ts';

/**
 * Where one Envoy has what it cannot share with another: admin socket and bootstrap. There are two, so that a new Envoy
 * can come up beside the one it replaces; ports and log are shared.
 */
export interface Slot {
	/** Of the instance of its unit, `onramp-envoy@a.service`. */
	readonly name: 'a' | 'b';
	readonly config: ProxyConfig;
	/** As text; it names the admin socket. */
	readonly bootstrap: string;
	readonly admin: AdminClient;
}

export function makeSlots(
	config: ProxyConfig,
	renderBootstrap: (config: ProxyConfig) => string,
): readonly [Slot, Slot] {
	const make = (name: Slot['name'], own: ProxyConfig): Slot => ({
		name,
		config: own,
		bootstrap: renderBootstrap(own),
		admin: new AdminClient(own.adminSocketPath),
	});
	const spare = {
		...config,
		adminSocketPath: beside(config.adminSocketPath),
		bootstrapPath: beside(config.bootstrapPath),
	};
	return [make('a', config), make('b', spare)];
}

/** `admin.sock` → `admin-b.sock` */
function beside(path: string): string {
	const extension = extname(path);
	return `${path.slice(0, path.length - extension.length)}-b${extension}`;
}
