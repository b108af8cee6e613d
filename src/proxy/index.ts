export {AdminClient} from './admin.ts';
export {type BootstrapInput, renderBootstrap} from './bootstrap.ts';
export {startProxy} from './proxy.ts';
export {type SdsService, startSds} from './sds.ts';
export type {
	EnvoyProxy,
	LastExit,
	ProxyDeps,
	ProxyState,
	ProxyStatus,
	SecretMaterial,
	SecretSource,
} from './types.ts';
export {startXdsSocket, type XdsService, type XdsSocketDeps} from './xds-socket.ts';
