export {AdminClient} from './admin.ts';
export {type BootstrapInput, renderBootstrap} from './bootstrap.ts';
export {startProxy} from './proxy.ts';
export type {EnvoyProxy, LastExit, ProxyDeps, ProxyState, ProxyStatus} from './types.ts';
